"""The operator table: what `python -m benchmarks` measures, the selection and the order that the time allows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.engine import report
from benchmarks.engine.suite import Suite
from benchmarks.engine.suite import run as measured_rows
from benchmarks.engine.work import FUSED, Json
from benchmarks.ops import contrastive, norm, resample
from benchmarks.ops.contrastive_cases import Case as LossCase
from benchmarks.ops.norm_cases import Case as NormCase
from benchmarks.ops.resample import Case as MapCase
from benchmarks.proof.child import Answers
from benchmarks.proof.part import Asked, OutOfTime
from benchmarks.proof.processes import measured_apart

SUITES = {suite.name: suite for suite in (norm.SUITE, contrastive.SUITE, resample.SUITE)}
# The dtypes in the layouts that networks are mostly trained in; `python -m benchmarks` has them all.
USUAL = ((torch.bfloat16, True), (torch.float32, False))
LARGE = (8, 64, 256, 256)  # 134 MB in float32, 67 in bfloat16: beyond any L2
# Where torch.compile, at some five seconds a row, is among the contestants of a norm: in bfloat16, with the backward.
COMPILED = ("instance_norm_relu", "instance_norm_relu_pad", "instance_norm_residual")


def run(asked: Asked, found: Json) -> None:
    measured_apart("operators", asked, found)
    failed = [row for row in found["rows"] if not fused_is_right(row)]
    if failed:
        labels = ", ".join(f"{row['label']} {row['mode']}" for row in failed[:3])
        raise AssertionError(f"{len(failed)} rows in which fused is wrong, or nothing could be measured: {labels}")


def fused_is_right(row: Json) -> bool:
    return row["providers"].get(FUSED, {}).get("status") == "ok"


def summary(found: Json) -> dict[str, Json]:
    """Of each suite what `python -m benchmarks` reports: speed-ups, losses, failures."""
    tables = {}
    for name, suite in SUITES.items():
        if rows := [row for row in found.get("rows", []) if row["suite"] == name]:
            tables[name] = report.summarise(suite, rows)
    return tables


# ---- in the child ----------------------------------------------------------------------------------------------------


def measure(asked: Asked, out: Answers) -> None:
    done, chosen = 0, list(cases(asked.sizes))
    skip = () if asked.sizes["compile"] else ("torch.compile",)
    total = sum(len(suite.modes(case)) for suite, group in chosen for case in group)
    for suite, group in chosen:
        rows = measured_rows(suite, group, asked.device, asked.sizes["rounds"], skip)
        for row in rows:
            out.row("rows", {"suite": suite.name} | row)
            done += 1
            if time.monotonic() > asked.until and done < total:
                rows.close()
                raise OutOfTime(f"{done} of {total} rows were measured")


def cases(sizes: Json) -> Iterator[tuple[Suite, list[Any]]]:
    """What the targets speak of first: norms of large maps, five layers of PatchNCE; then the shapes of CUT."""
    if sizes["shapes"]:  # of tests and of a CPU
        for op in sizes["ops"]:
            yield norm.SUITE, norm.SUITE.cases(False, (op,), [tuple(shape) for shape in sizes["shapes"]])[:2]
        yield contrastive.SUITE, [LossCase("patch_nce_layers", 1, 16, torch.float32)]
        yield resample.SUITE, [MapCase("reflection_pad2d", (1, 3, 16, 16), 1, torch.float32, False)]
        return
    large = [op for op in norm.OPERATORS if op.name != "instance_norm_leaky_relu" and op.dimensions == 4]
    for dtype, last in USUAL:
        yield norm.SUITE, [NormCase(op, LARGE, int(op.shapes[0][1] > 0), dtype, last, ()) for op in large]
    layers = [LossCase("patch_nce_layers", 1, 256, dtype, compiled=last) for dtype, last in USUAL]
    yield contrastive.SUITE, layers
    for dtype, last in USUAL:
        yield (
            norm.SUITE,
            [
                NormCase(op, shape, padding, dtype, last, (True,) if last and op.name in COMPILED and i == 0 else ())
                for op in norm.OPERATORS
                for i, (shape, padding) in enumerate(op.selected)
            ],
        )
    losses = [case for case in contrastive.SUITE.cases(False, (), ()) if case.name != "patch_nce_layers"]
    yield contrastive.SUITE, [case._replace(compiled=False) for case in losses]
    maps = [case for case in resample.SUITE.cases(False, (), ()) if (case.dtype, case.channels_last) in USUAL]
    # torch.compile fails in the backward of CUT's x2
    some = [
        case._replace(compiled=case.compiled and case.channels_last and case.name == resample.DOWN) for case in maps
    ]
    yield resample.SUITE, some
