"""The launchers for GPUs under other default devices and dtypes."""

import pytest
from support.defaults_cases import CASES, DEFAULTS, check
from support.device_numerics import DEVICE

TORCHS_OWN = ("hdce_weight", "semantic_relation_loss")


@pytest.mark.parametrize("name", [name for name in CASES if name not in TORCHS_OWN])
def test_launchers_do_not_look_at_the_defaults(name, impl):
    compute, leaves = CASES[name]
    check(lambda *given: compute(impl, *given), leaves, DEVICE, DEFAULTS["bfloat16 on meta"])
