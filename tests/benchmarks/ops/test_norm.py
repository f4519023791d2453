"""The benchmarks of norms: every contestant computes its operator, inputs, bytes, selection."""

from __future__ import annotations

import pytest
import torch
from support.norm_suite import CPU, TINY, TINY_3D, measured, tiny_cases

from benchmarks.engine.work import INTO
from benchmarks.ops.norm import SUITE
from benchmarks.ops.norm_cases import OPERATORS, cases, make_inputs, necessary_bytes

VOLUMES = "instance_norm_3d_leaky_relu"


# Their contestants differ from a neighbour's by the activation.
LIKE_ANOTHER = ("instance_norm_relu", "instance_norm_leaky_relu")


@pytest.mark.parametrize(
    "op", [pytest.param(op.name, marks=pytest.mark.slow if op.name in LIKE_ANOTHER else ()) for op in OPERATORS]
)
def test_every_contestant_computes_its_operator(op):
    """At N = 2, where torch's instance norm has no defect, all pass in both dtypes, formats and modes."""
    for row in measured(SUITE, op):
        for name, result in row["providers"].items():
            if result["status"] == "absent":
                assert name == INTO
            else:
                assert result["status"] == "ok", (name, row["label"], row["mode"], result)


def test_inputs_are_the_same_in_every_process_and_format():
    case = next(case for case in tiny_cases("instance_norm_residual") if case.channels_last)
    (a, _), (b, _), (c, _) = (make_inputs(k, CPU) for k in (case, case, case._replace(channels_last=False)))
    assert all(torch.equal(p, q) and torch.equal(p, r) for p, q, r in zip(a, b, c))
    assert [t.shape for t in a] == [torch.Size(TINY)] * 2
    assert a[0].is_contiguous(memory_format=torch.channels_last) and c[0].is_contiguous()
    (x,), grad = make_inputs(next(k for k in tiny_cases(VOLUMES) if k.channels_last), CPU)
    assert all(t.is_contiguous(memory_format=torch.channels_last_3d) and not t.is_contiguous() for t in (x, grad))


def test_shapes_asked_for_are_given_to_operators_of_their_dimensions():
    for shape, names in ((TINY, {op.name for op in OPERATORS if "3d" not in op.name}), (TINY_3D, {VOLUMES})):
        assert {case.name for case in cases(full=False, shapes=[shape])} == names


def test_necessary_bytes():
    def of(name, backward):
        return necessary_bytes(tiny_cases(name)[0], backward) // 4 // 10  # float32; planes

    plane, padded = 9 * 7, 11 * 9
    assert of("instance_norm_relu", False) == 2 * plane
    assert of("instance_norm_relu", True) == 5 * plane
    assert of("instance_norm_residual", False) == 3 * plane
    assert of("instance_norm_relu_pad", True) == 3 * plane + 2 * padded
    assert of("adain", True) == 8 * plane
    assert of(VOLUMES, True) == 5 * (5 * 3 * 7)


def test_full_covers_published_and_awkward_shapes():
    everything = cases(full=True)
    assert {case.op.name for case in everything} == {op.name for op in OPERATORS}
    for op in OPERATORS:
        shapes = [case.shape for case in everything if case.op is op]
        assert any(all(size % 2 for size in space) for _, _, *space in shapes) and any(c == 3 for _, c, *_ in shapes)
    assert {case.dtype for case in everything} == {torch.float32, torch.bfloat16}
    assert all(case.compiled == (False, True) for case in everything)
    assert len(everything) == len({case.label for case in everything})
