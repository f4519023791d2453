"""FastCUT: the lighter setting of CUT (Park, Efros, Zhang, Zhu; ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from i2i.methods.cut import CUT, CUTConfig


@dataclass
class FastCUTConfig(CUTConfig):
    lambda_nce: float = 10.0
    nce_idt: bool = False
    flip_equivariance: bool = True
    n_epochs: int = 150
    n_epochs_decay: int = 50


class FastCUT(CUT):
    """CUT with B never through G; instead, a mirrored image must be translated as the image is, mirrored."""

    name = "fastcut"
    title = "CUT without its identity half, equivariant to mirroring: faster, lighter (Park et al., ECCV 2020)"
    Config = FastCUTConfig
