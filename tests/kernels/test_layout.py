"""kernels.preferred_memory_format: the processor, the dtype and the passes decide on CPUs."""

import pytest
import torch

import kernels

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(("capability", "form"), [("DEFAULT", CONTIGUOUS), ("AVX2", CONTIGUOUS), ("AVX512", LAST)])
def test_preferred_memory_format(capability, form, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    preferred = kernels.preferred_memory_format
    assert preferred("cpu") == preferred(torch.device("cpu")) == preferred("cpu", torch.float64) == form
    assert preferred("cpu", torch.bfloat16) == preferred("cpu", torch.float16) == LAST
    assert preferred("cpu", training=False) == LAST
    assert preferred("cuda") == preferred("cuda:1", torch.float64) == preferred("mps") == LAST


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None,), "device: got None, want a torch.device or the name of one"),
        (("gpu",), "device: got 'gpu', want a torch.device or the name of one"),
        (("cpu", "float32"), "dtype: got 'float32', want a torch.dtype"),
    ],
)
def test_other_arguments_are_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        kernels.preferred_memory_format(*given)
    with pytest.raises(TypeError, match="training"):
        kernels.preferred_memory_format("cpu", training="yes")
