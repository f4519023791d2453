"""CUT's contrastive loss and those that came after it: other weights of the negatives, and negatives from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from i2i.config import NetworkConfig, setting


@dataclass
class ContrastConfig(NetworkConfig):
    """Which contrastive loss; the defaults are CUT's."""

    lambda_nce: float = setting(1.0, "weight of the contrastive loss; 0: neither that loss nor network F")
    temperature: float = setting(0.07, "divides the similarities in the contrastive loss (published: nce_T)")
    contrast: str = setting("nce", "contrastive loss: nce (the paper's), dcl, monce or hdce")
    negatives: str = setting(
        "image",
        "what a patch is contrasted with: patches of the same image, of the minibatch, or external: of past images",
    )
    queue_size: int = setting(16384, "patches of past images kept for each layer, with negatives=external")
    monce_eps: float = setting(1.0, "regularisation of MoNCE's transport plan; its horse2zebra script takes 0.1")
    hdce_gamma: float = setting(
        10.0,
        "temperature of hDCE's weights; constant here, published runs lower it to this, from 50 for instance",
    )
    lambda_src: float = setting(0.05, "weight of hDCE's semantic relation loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "queue_size")
        self.at_least(0, "lambda_nce", "lambda_src")
        for name in ("temperature", "monce_eps", "hdce_gamma"):
            self.require(getattr(self, name) > 0, name, "above 0")
        self.one_of("contrast", ("nce", "dcl", "monce", "hdce"))
        self.one_of("negatives", ("image", "minibatch", "external"))

    def check_variant(self, feature_network: str) -> None:
        """UsageError where settings do not go together, in a run that has a contrastive loss."""
        if self.contrast in ("monce", "hdce"):
            self.require(
                self.negatives == "image",
                "negatives",
                f"image with contrast={self.contrast}, which weighs the patches of an image against each other",
            )
        if self.negatives == "external":
            self.require(
                feature_network == "mlp_sample",
                "feature_network",
                "mlp_sample with negatives=external, which follows its weights",
            )


def contrastive_loss(
    config: ContrastConfig, queries: list[Tensor], rows: list[Tensor], bank: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """Scalar: lambda_nce * the mean over places, then over layers, of config.contrast between (B, P, C) of each.
    `bank`: negatives (M, C) of each layer, in place of the other rows. Negatives of the "minibatch" are those of this
    process's share of it.

    "nce": PatchNCE of the CUT paper. "dcl": without the positive in the sum (Yeh et al. 2021). "monce": negatives
    weighted by an optimal transport plan (MoNCE, Zhan et al. 2022). "hdce": decoupled, similarities weighted by how
    alike the keys are (hDCE, Jung et al. 2022), plus lambda_src * that paper's semantic relation loss. See
    `kernels.patch_nce_loss`, `monce_log_weight`, `hdce_weight`, `semantic_relation_loss`.
    """
    if config.negatives == "minibatch":
        queries, rows = ([x.flatten(0, 1)[None] for x in given] for given in (queries, rows))
    pairs = list(zip(queries, rows, strict=True))
    weights: dict[str, Any] = {}
    if config.contrast == "monce":
        weights["log_weight"] = [
            kernels.monce_log_weight(q, k, eps=config.monce_eps, normalize=True, impl=impl) for q, k in pairs
        ]
    elif config.contrast == "hdce":
        weights["similarity_weight"] = [kernels.hdce_weight(k, config.hdce_gamma, normalize=True) for k in rows]
    nce: Any = kernels.patch_nce_loss(  # a tensor: the mean
        queries,
        rows,
        negatives=None if bank is None else list(bank),
        temperature=config.temperature,
        normalize=True,
        decoupled=config.contrast in ("dcl", "hdce"),
        impl=impl,
        **weights,
    )
    loss = config.lambda_nce * nce
    if config.contrast == "hdce":
        relations = [kernels.semantic_relation_loss(q, k) for q, k in pairs]
        loss = loss + config.lambda_src * torch.stack(relations).mean()
    return loss
