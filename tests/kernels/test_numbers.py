"""Options given as numbers of numpy, in every room: as Python's, in functions and in modules."""

import numpy as np
import pytest
import torch

import kernels

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMPLS = pytest.mark.parametrize("impl", ["reference", "cpu"])

REAL = {
    "norm eps": lambda n, impl: kernels.instance_norm(X, eps=n, impl=impl),
    "norm slope": lambda n, impl: kernels.instance_norm(X, activation="leaky_relu", negative_slope=n, impl=impl),
    "adain alpha": lambda n, impl: kernels.adain(X, X.flip(0), alpha=n, impl=impl),
    "norm module": lambda n, impl: kernels.InstanceNorm2d(
        3, eps=n, activation="leaky_relu", negative_slope=n, impl=impl
    )(X),
    "layer norm": lambda n, impl: kernels.munit_layer_norm(X, None, None, eps=n, impl=impl),
}
WHOLE = {
    "norm padding": lambda n, impl: kernels.instance_norm(X, padding=n, impl=impl),
    "norm module": lambda n, impl: kernels.InstanceNorm2d(3, padding=n, impl=impl)(X),
    "reflection": lambda n, impl: kernels.reflection_pad2d(X, n, impl=impl),
    "reflection by side": lambda n, impl: kernels.reflection_pad2d(X, (n, 0, 1, n), impl=impl),
    "reflection module": lambda n, impl: kernels.ReflectionPad2d(n, impl=impl)(X),
    "blur": lambda n, impl: kernels.blur_downsample(X, filter_size=n, impl=impl),
    "blur module": lambda n, impl: kernels.BlurDownsample(3, n, impl=impl)(X),
    "patches": lambda n, impl: kernels.sample_patches([X], n, generator=torch.Generator().manual_seed(1), impl=impl)[0][
        0
    ],
    "sinkhorn": lambda n, impl: kernels.sinkhorn(X[0], n, impl=impl),
}


@IMPLS
@pytest.mark.parametrize("name", REAL)
def test_real_numbers(impl, name):
    for value in (np.float64(0.25), np.float32(0.25), np.float16(0.25), np.int64(1)):
        got, want = REAL[name](value, impl), REAL[name](float(value), impl)
        assert got.dtype == torch.float32 and torch.equal(got, want)
    for bad in (np.bool_(True), torch.tensor(0.25), "0.25", None):
        with pytest.raises(TypeError, match="(eps|negative_slope|alpha): got"):
            REAL[name](bad, impl)
    with pytest.raises(ValueError, match="(eps|negative_slope|alpha): got inf"):
        REAL[name](np.float32("inf"), impl)


@IMPLS
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(impl, name):
    for value in (np.int64(2), np.int32(2), np.uint8(2)):
        assert torch.equal(WHOLE[name](value, impl), WHOLE[name](2, impl))
    for bad in (np.float64(2), np.bool_(True), torch.tensor(2), "2"):
        with pytest.raises(TypeError, match="(padding|filter_size|num_patches|iterations): got"):
            WHOLE[name](bad, impl)
