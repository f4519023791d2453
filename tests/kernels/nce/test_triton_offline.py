"""The triton kernels of patch_nce_loss compiled for GPUs that are not here: what the launcher would really launch for
CUT's shapes and its relatives' must fit each target's shared memory and registers. See offline.py."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support.offline import (  # noqa: F401 (the fixture is found by its name)
    GFX942,
    Launch,
    assert_compile,
    assert_fit,
    describe,
    distinct,
    kernels_of,
    key,
    needs_assembler,
    one_parser_at_a_time,
    recorded,
)

from kernels._triton import ASSUMED_SMS
from kernels.nce import launch_triton, triton_backward, triton_forward
from kernels.nce.spec import Layer, Needs, Spec

# Bytes of stores and loads together: ptxas gives up some registers of kernels far from the limit (128 or 168 each, say)
# to fit one more program on a multiprocessor.
SPILLED = 64
TELLING = ("IN_IMAGE", "NORMALIZE")
SPILLED_ODD = 1024  # of all options at once, with widths no vector divides
FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
CUT = ((1, 256, 256),) * 5  # five layers of 256 patches, 256 features behind the head


class Case(NamedTuple):
    dtype: torch.dtype
    sizes: tuple = CUT  # (B, S, C) of each layer
    negatives: tuple = ()  # (M,) shared, or (B, M)
    weights: str = ""  # "", "log", "similarity" or "both"
    normalize: bool = False
    decoupled: bool = False
    needs: tuple = (True, False, False, False)


def launches(case: Case) -> list[Launch]:
    """Everything forward and backward of this call would launch."""

    def new(*shape):
        return torch.empty(shape, dtype=case.dtype, device="meta")

    def layer(b: int, s: int, c: int) -> Layer:
        negatives = new(*case.negatives, c) if case.negatives else None
        count = case.negatives[-1] if case.negatives else s
        weight = torch.empty(b, s, count, device="meta")
        given = (weight if case.weights in (name, "both") else None for name in ("log", "similarity"))
        return Layer(new(b, s, c), new(b, s, c), negatives, *given)

    layers = [layer(*size) for size in case.sizes]
    spec = Spec(0.07, case.normalize, case.decoupled)
    with recorded() as found:
        loss, stats, dq_unscaled = launch_triton.forward(layers, spec, [case.needs[0]] * len(layers))
        launch_triton.backward(loss, layers, stats, dq_unscaled, [Needs(*case.needs)] * len(layers), spec)
    return found


def network_cases(dtype: torch.dtype) -> list[Case]:
    both = (True, True, False, False)
    return [
        Case(dtype, needs=both),
        Case(dtype, normalize=True, needs=both),
        Case(dtype, ((16, 256, 256),) * 5, needs=both),  # batches: larger tiles
        Case(dtype, ((16, 256, 256),) * 5, normalize=True, needs=both),
        Case(dtype, ((1, 256, 64), (1, 256, 128), (1, 256, 256), (1, 256, 256), (1, 256, 256)), needs=both),  # no head
        Case(dtype, weights="log", needs=(True, False, False, True)),  # MoNCE
        Case(dtype, weights="similarity", decoupled=True),  # hDCE
        Case(dtype, ((4, 256, 256),), negatives=(4096,), normalize=True, needs=(True, True, True, False)),
    ]


def odd_cases(dtype: torch.dtype) -> list[Case]:
    every = (True, True, True, True)
    return [
        Case(dtype, ((2, 5, 1), (1, 33, 37), (3, 2, 300)), weights="both", normalize=True, needs=every),
        Case(dtype, ((3, 7, 3),), negatives=(3, 70), weights="both", normalize=True, needs=every),
        Case(dtype, ((16, 256, 256),) * 8, weights="both", normalize=True, needs=every),
        Case(dtype, ((64, 256, 512),), negatives=(64, 512), weights="both", normalize=True, needs=every),
        Case(dtype, ((64, 256, 256),), negatives=(16384,), weights="log", needs=every),
    ]


def of(cases: list[Case]) -> list[Launch]:
    return distinct(launch for case in cases for launch in launches(case))


def test_every_kernel_is_there():
    names = {launch.name for launch in of(network_cases(FLOAT))}
    assert names == kernels_of(triton_forward, triton_backward)


@needs_assembler
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_resources_on_sm90(dtype):
    assert_fit(of(network_cases(dtype)), 90, SPILLED, TELLING)


@pytest.mark.slow
@needs_assembler
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
@pytest.mark.parametrize("capability", [80, 100])
def test_resources_on_other_generations(capability, dtype):
    assert_fit(of([network_cases(dtype)[i] for i in (1, 3)]), capability, SPILLED, TELLING)


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_compiles_for_gfx942(dtype):
    assert_compile(of(network_cases(dtype)[1:2]), GFX942)


@pytest.mark.slow
@needs_assembler
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
def test_resources_of_everything(dtype, capability):
    assert_fit(of(network_cases(dtype) + odd_cases(dtype)), capability, SPILLED_ODD, TELLING)


@pytest.mark.slow
@needs_assembler
def test_resources_with_tf32(monkeypatch):
    monkeypatch.setattr(launch_triton, "precision", lambda dtype: "tf32")
    for capability in (80, 90):
        assert_fit(of(network_cases(FLOAT)), capability, SPILLED, TELLING)


# ---- the launcher itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_one_launch_serves_all_layers(dtype):
    for sizes in (CUT, ((1, 256, 64), (2, 64, 128), (1, 32, 300))):
        assert [launch.name for launch in launches(Case(dtype, sizes))] == [
            "nce_forward",
            "nce_backward_rows",
        ]
    assert len(launches(Case(dtype, CUT + CUT))) == 4  # beyond 8 layers, one more


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_tiles_grow_with_the_batch(dtype):
    few, many = (launches(Case(dtype, ((batch, 256, 256),) * 5)) for batch in (1, 64))
    assert few[0].programs == 80 and few[0].constants["BLOCK_Q"] == 16, describe(few[0])
    assert many[0].constants["BLOCK_Q"] == 64 and many[0].programs == 5 * 64 * 4, describe(many[0])
    assert all(launch.programs >= 2 * ASSUMED_SMS for launch in many)


def test_kernels_are_not_compiled_anew_for_every_shape():
    shapes = [CUT, ((1, 1, 256),) * 5, ((3, 77, 256),) * 5, ((1, 255, 64),) * 5, ((2, 64, 256), *CUT[1:])]
    with_negatives = [key(launch) for sizes in shapes for launch in launches(Case(FLOAT, sizes, negatives=(100,)))]
    assert len(set(with_negatives)) <= 6, set(with_negatives)  # alike and unlike layers


def test_weights_of_other_dtypes_and_strides_are_read_where_they_are():
    weight = torch.empty(1, 1, 256, dtype=torch.float64, device="meta").expand(1, 256, 256)
    x = torch.empty(1, 256, 256, device="meta")
    (work,) = launch_triton._kinds(launch_triton._works([Layer(x, x, None, weight, None)]))
    assert launch_triton._Call(work, Spec(0.07, True, False), 256).strides == (((256,), (0,), (1,)), None)
    assert work[0].layer.log_weight is weight


def test_tf32_only_where_torch_allows_it():
    assert launch_triton.precision(FLOAT) == "ieee"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert launch_triton.precision(FLOAT) == "tf32" and launch_triton.precision(BF16) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
