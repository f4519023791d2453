"""The triton Sinkhorn kernels on a GPU: the interpreter's cases."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")
pytest.register_assert_rewrite("sinkhorn_triton_cases")

from sinkhorn_triton_cases import *  # noqa: E402, F403

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
