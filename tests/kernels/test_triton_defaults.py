"""The triton launchers under other default devices and dtypes."""

import pytest
from support.defaults_cases import CASES, DEFAULTS, check
from support.triton_numerics import DEVICE

TORCHS_OWN = ("hdce_weight", "semantic_relation_loss")


@pytest.mark.parametrize("name", [name for name in CASES if name not in TORCHS_OWN])
def test_launchers_do_not_look_at_the_defaults(name):
    compute, leaves = CASES[name]
    check(lambda *given: compute("triton", *given), leaves, DEVICE, DEFAULTS["bfloat16 on meta"])
