"""Targets: what counts as held, missed, and not measured; and how the report tells it."""

from __future__ import annotations

import copy

import pytest

from benchmarks.engine.work import EAGER, FUSED
from benchmarks.proof import launches, report
from benchmarks.proof.part import FAILED, LATE, NOT_HERE, OK
from benchmarks.proof.targets import MISSED, NOT_MEASURED, PASSED, TARGETS, checks
from benchmarks.systems.stock import GRAPHS, OURS, PUBLISHED

LARGE, SMALL = [8, 64, 256, 256], [1, 256, 64, 64]


def part(**found) -> dict:
    return {"status": OK, "reason": "", "seconds": 1.0, "limit_s": 9.0, **found}


def row(operator: str, mode: str, shape: list[int], percent: float, speedup: float, suite: str = "ops") -> dict:
    fused = {"status": "ok", "reason": "", "median_ms": 0.1, "p20_ms": 0.1, "p80_ms": 0.1, "percent_of_copy": percent}
    eager = fused | {"fused_speedup": speedup, "loss": speedup < 1, "percent_of_copy": percent / speedup}
    return {
        "suite": suite,
        "operator": operator,
        "label": f"{operator} {'x'.join(map(str, shape))} float32",
        "mode": mode,
        "shape": shape,
        "dtype": "float32",
        "memory_format": "contiguous",
        "noisy": False,
        "providers": {EAGER: eager, FUSED: fused | {"wall_us_per_call": 9.0}},
    }


def step(name: str, seconds: float, **more) -> dict:
    times = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds, "samples_s": [seconds]}
    return {"name": name, "status": "ok", "reason": "", "peak_bytes": 2**31, "reserved_bytes": 2**32} | times | more


# Of a machine on which all targets hold.
HELD = {
    "tests": part(
        runs={
            "CUDA": {"passed": 900, "failed": 0, "skipped": 3, "failures": [], "seconds": 60.0},
            "Triton": {"passed": 700, "failed": 0, "skipped": 0, "failures": [], "seconds": 50.0},
        }
    ),
    "sanitizer": part(
        tools={
            name: {"errors": 0, "warnings": 0, "calls": "108 calls", "lines": [], "seconds": 20.0}
            for name in ("memcheck", "racecheck")
        }
    ),
    "operators": part(
        rows=[
            row("instance_norm", "fwd", LARGE, 92.0, 3.0),
            row("instance_norm", "fwd+bwd", LARGE, 86.0, 3.0),
            row("adain", "fwd", SMALL, 40.0, 1.5),  # too small for the speed of a copy to matter
            row("patch_nce_layers", "fwd+bwd", SMALL, 0.0001, 12.0, suite="contrastive"),
        ]
    ),
    "launches": part(
        impl="cuda",
        host_calls=40,
        host_repeats=60,
        fill_us=2.5,
        calls=[
            {"name": launches.FIVE, "what": launches.FORWARD, "host_us": 50.0, "launches": 2, "kernels": ["a", "b"]},
            {"name": launches.FIVE, "what": launches.BOTH, "host_us": 90.0, "launches": 3, "kernels": ["a", "b", "c"]},
        ],
    ),
    "steps": part(
        size=256,
        systems={
            "CUT": [
                step(PUBLISHED, 0.030),
                step(GRAPHS, 0.010),
                step(OURS, 0.006, convolutions_s=0.0045, launches=650, graphs=["batch 1x3x256x256: recorded, 1 graph"]),
            ],
            "CycleGAN": [step(PUBLISHED, 0.05), {"name": OURS, "status": "error", "reason": "killed", "samples_s": []}],
        },
    ),
    "training": part(
        runs=[
            {"precision": p, "steps": 300, "start": 12.4, "end": 18.4, "rise": 6.0, "untouched": 9.3, "seconds": 9.0}
            for p in ("float32", "bfloat16")
        ]
    ),
}


def by_name(parts: dict, device: str = "cuda") -> dict[str, dict]:
    return {check["target"]: check for check in checks(parts, device)}


def test_all_hold():
    found = by_name(HELD)
    assert {check["status"] for check in found.values()} == {PASSED} and len(found) == len(TARGETS) == 16
    assert found["CUT step faster than the published form"]["text"] == "5x"
    assert found["CUT step, of its convolutions' time"]["of"] == "a step of 6 ms, 4.5 of convolutions"
    assert "of 900 tests, 3 more skipped" in found["tests on the device fail, CUDA"]["of"]


def set_in(parts: dict, path: list, value) -> dict:
    parts = copy.deepcopy(parts)
    at = parts
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return parts


@pytest.mark.parametrize(
    "path, value, target, told",
    [
        (["tests", "runs", "CUDA", "failed"], 2, "tests on the device fail, CUDA", "of 902 tests"),
        (["sanitizer", "tools", "racecheck", "errors"], 1, "errors of racecheck", "in 108 calls"),
        (
            ["operators", "rows", 0, "providers", FUSED, "status"],
            "FAIL",
            "fused operators wrong, or not to be measured",
            "of 4 rows",
        ),
        (
            ["operators", "rows", 0, "providers", FUSED, "percent_of_copy"],
            84.0,
            "norms above 64 MB, forward, of a copy's speed",
            "instance_norm 8x64x256x256 float32, the slowest of 1",
        ),
        (
            ["operators", "rows", 1, "providers", FUSED, "percent_of_copy"],
            84.0,
            "norms above 64 MB, with backward, of a copy's speed",
            "instance_norm",
        ),
        (
            ["operators", "rows", 2, "providers", EAGER, "fused_speedup"],
            0.9,
            "norms slower than any other code",
            "of 3 comparisons, the worst 0.90x: adain",
        ),
        (
            ["operators", "rows", 3, "providers", EAGER, "fused_speedup"],
            9.0,
            "PatchNCE of five layers, with backward, faster than eager",
            "patch_nce_layers",
        ),
        (["launches", "calls", 1, "launches"], 4, "PatchNCE of five layers, with backward, launches", "a, b, c"),
        (
            ["steps", "systems", "CUT", 0, "median_s"],
            0.017,
            "CUT step faster than the published form",
            "17 ms against 6",
        ),
        (
            ["steps", "systems", "CUT", 1, "median_s"],
            0.007,
            "CUT step faster than torch.compile with CUDA graphs",
            "7 ms",
        ),
        (["steps", "systems", "CUT", 2, "convolutions_s"], 0.003, "CUT step, of its convolutions' time", "3 of conv"),
        (["steps", "systems", "CUT", 2, "launches"], 701, "CUT step, launches", "of a step"),
        (
            ["steps", "systems", "CUT", 2, "graphs", 0],
            "recording failed",
            "steps that are not recorded as CUDA graphs",
            "CUT",
        ),
        (["training", "runs", 1, "rise"], 2.0, "held-out score of the training run rises", "bfloat16"),
    ],
)
def test_each_can_be_missed(path, value, target, told):
    found = by_name(set_in(HELD, path, value))
    assert [name for name, check in found.items() if check["status"] == MISSED] == [target]
    assert told in found[target]["of"]


def test_not_measured_says_why():
    parts = {
        "tests": part(status=NOT_HERE, reason="pytest is not installed"),
        "sanitizer": part(
            status=LATE,
            reason="after 9 s, within racecheck",
            tools={"memcheck": HELD["sanitizer"]["tools"]["memcheck"]},
        ),
        "operators": part(status=FAILED, reason="RuntimeError: no driver"),
        "launches": part(impl="cuda", calls=[{"name": launches.FIVE, "what": launches.BOTH, "host_us": 1.0}]),
        "steps": HELD["steps"] | {"systems": {"CUT": HELD["steps"]["systems"]["CUT"][:1]}},
    }
    found = by_name(parts)
    reasons = {name: check["reason"] for name, check in found.items() if check["status"] == NOT_MEASURED}
    assert len(reasons) == 15
    assert reasons["tests on the device fail, CUDA"] == "the part tests: not possible here: pytest is not installed"
    assert reasons["errors of racecheck"] == "the part sanitizer: out of time: after 9 s, within racecheck"
    assert "failed: RuntimeError: no driver" in reasons["norms slower than any other code"]
    assert "nothing of it was measured" in reasons["PatchNCE of five layers, with backward, launches"]
    assert "nothing of it was measured" in reasons["CUT step faster than the published form"]
    assert reasons["held-out score of the training run rises"] == "the part training was not asked for, or not reached"
    memory = found["errors of memcheck"]
    assert memory["status"] == PASSED and memory["reason"] == "of what there was time for (out of time)"


def test_a_cpu_says_nothing_about_a_gpu():
    found = by_name(HELD, "cpu")
    measured = [name for name, check in found.items() if check["status"] != NOT_MEASURED]
    assert measured == ["fused operators wrong, or not to be measured", "held-out score of the training run rises"]
    assert found["CUT step, launches"]["reason"] == "needs a GPU"


# ---- the report ------------------------------------------------------------------------------------------------------

GPU = {"name": "NVIDIA H100", "driver_version": "580.1", "clocks.sm": "1980 MHz", "temperature.gpu": "40"}


def result(parts: dict) -> dict:
    return {
        "kind": "CUDA device time",
        "device": "cuda",
        "machine": {"cpu": "a CPU", "cores": 16, "threads": 16, "memory_gib": 128.0, "gpu": GPU},
        "versions": {"torch": "2.11", "triton": "3.6", "python": "3.12", "kernels_isa": None, "cuda": "13.0"},
        "commit": {"hash": None, "dirty": None},
        "date": "2026",
        "command": "python -m benchmarks.prove",
        "interrupted": False,
        "other_load": None,
        "rows": checks(parts, "cuda"),
        "parts": parts,
        "gpu_after": GPU | {"clocks.sm": "1700 MHz"},
        "cuda": [
            "cuda       active, NVRTC 13.0, sm_90; 2 kernels built",
            "  a: 80 registers, 0 bytes spilled",
            "  b: 9 registers, 16 bytes spilled",
        ],
    }


def test_the_report_begins_with_what_holds(tmp_path):
    parts = set_in(HELD, ["steps", "systems", "CUT", 2, "launches"], 701)
    parts["tests"] = part(status=FAILED, reason="CUDA: 1 failed", runs=copy.deepcopy(parts["tests"]["runs"]))
    parts["tests"]["runs"]["CUDA"] |= {"failed": 1, "failures": [{"test": "tests.a::test_b", "why": "off by 1"}]}
    paths = report.write(result(parts), tmp_path)
    assert [path.name for path in paths] == ["proof.json", "proof.md", "proof.png"]
    text = (tmp_path / "proof.md").read_text()
    assert text.splitlines()[2] == (
        "**14 of 16 targets hold, 2 do not, 0 were not measured.** Parts that did not end well: tests (failed)."
    )
    assert "| CUT step, launches | at most 700 | 701 | **failed** | kernels, copies and fills of a step |" in text
    assert "| tests | **failed** | 1 of 9 | CUDA: 1 failed |" in text and "* tests.a::test_b: off by 1" in text
    assert "NVIDIA H100, driver 580.1" in text and "clocks.sm 1980 MHz → 1700 MHz" in text and "CUDA 13.0" in text
    assert "2 kernels built; 1 of them spill registers" in text and "* b: 9 registers, 16 bytes spilled" in text
    assert "| ours | 6 (6–6) | – | 2.00 | 4.00 | – | 701 | – |" in text
    assert "* **error** ours: killed" in text and "* ours: batch 1x3x256x256: recorded, 1 graph" in text
    assert "| instance_norm 8x64x256x256 float32 | fwd | 100.0 | 92 | 3.00x | 3.00x | – | – |" in text
    assert (tmp_path / "proof.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_nothing(tmp_path):
    parts = {name: part(status=FAILED, reason="planted") for name in HELD}
    report.write(result(parts), tmp_path)
    text = (tmp_path / "proof.md").read_text()
    assert "**0 of 16 targets hold, 0 do not, 16 were not measured.**" in text
    assert "## Operators" not in text and (tmp_path / "proof.png").exists()
