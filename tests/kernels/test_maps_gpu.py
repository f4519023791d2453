"""The triton kernels of every operator on maps, on a GPU: the interpreter's cases."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")
pytest.register_assert_rewrite("maps_triton_cases", "map_cases")

from maps_triton_cases import *  # noqa: E402, F403

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
