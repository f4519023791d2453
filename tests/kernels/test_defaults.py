"""Default device and default dtype are what tensors are made with that nobody said anything about: none of ours."""

import pytest
import torch
from support.defaults_cases import CASES, DEFAULTS, MODULES, X, check, defaults

import kernels

IMPLS = ("reference", "cpu")


def test_every_public_operator_and_module_is_tried():
    tried = {name.partition(",")[0] for name in (*CASES, *MODULES)}
    others = {"BackendUnavailable", "FuseReport", "backend_report", "keep_freed_memory"}
    others |= {"accelerate", "fuse", "unfuse", "preferred_memory_format"}
    assert tried == set(kernels.__all__) - others


@pytest.mark.parametrize("changed", DEFAULTS)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", CASES)
def test_operators_do_not_look_at_the_defaults(name, impl, changed):
    compute, leaves = CASES[name]
    check(lambda *given: compute(impl, *given), leaves, "cpu", DEFAULTS[changed])


@pytest.mark.parametrize("changed", DEFAULTS)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", MODULES)
def test_modules_do_not_look_at_them_once_they_are_made(name, impl, changed):
    check(MODULES[name](impl), (X,), "cpu", DEFAULTS[changed])


@pytest.mark.parametrize("name", ["InstanceNorm2d", "MunitLayerNorm", "BlurDownsample", "BlurUpsample"])
@pytest.mark.parametrize("assign", [False, True])
def test_modules_are_made_on_the_default_device_and_filled_later(name, assign):
    good = MODULES[name]("auto")
    with defaults(device="meta", dtype=torch.float64):
        made = MODULES[name]("auto")
    held = [t for t in made.state_dict().values() if t.is_floating_point()]
    assert held and all(t.is_meta and t.dtype == torch.float64 for t in held)
    if not assign:
        made.to_empty(device="cpu")
        for t in made.state_dict().values():
            t.fill_(7)  # memory nobody has written
    made.load_state_dict(good.state_dict(), assign=assign)
    assert torch.equal(made.float()(X), good(X))


@pytest.mark.parametrize("make", [kernels.BlurDownsample, kernels.BlurUpsample])
def test_another_filter_is_refused_on_the_meta_device_too(make):
    state = {"filt": make(4).filt.flip(-1) + 0.5}
    with defaults(device="meta"):
        made = make(4)
    with pytest.raises(RuntimeError, match="got other numbers than the published filter's"):
        made.load_state_dict(state, assign=True)
