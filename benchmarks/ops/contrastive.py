"""The contrastive rooms as a suite: losses, weights and sampling against stock torch, and memory against the bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.engine.measure import peak_bytes
from benchmarks.engine.plot import png, where
from benchmarks.engine.suite import Suite
from benchmarks.engine.work import MODES, Json
from benchmarks.ops.contrastive_cases import ABOUT, EAGER, FUSED, NAMES, Case, cases, products_flops, work


def memory_curve(device: torch.device, full: bool) -> list[Json]:
    """Peak memory of one forward and backward beyond the inputs, against the size of the bank; 4 x 256 queries."""
    points = []
    for bank in (1024, 4096, 16384, 65536) if full else (1024, 4096, 16384):
        case = Case("patch_nce_bank", 4, 256, torch.float32, bank)
        given = work(case, device)
        for name in (EAGER, FUSED):
            mine = given.copied()
            function = mine.contestants[name].function
            peak = peak_bytes(mine.timed(function, True), True, device)
            points.append({"bank": bank, "provider": name, "peak_bytes": peak, "logits_bytes": 4 * 256 * bank * 4})
    return points


def _memory(measured: Sequence[Case], device: torch.device, full: bool) -> Json:
    banks = any(case.name == "patch_nce_bank" for case in measured)
    return {"memory": memory_curve(device, full) if banks else []}


def memory_picture(result: Json) -> bytes:
    """Memory of one forward and backward beyond the inputs, against the size of the bank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    points = result["memory"]
    for name, colour, text in ((EAGER, "#0072B2", "stock torch (MoCo's form)"), (FUSED, "#D55E00", "fused")):
        mine = [p for p in points if p["provider"] == name]
        axis.plot([p["bank"] for p in mine], [p["peak_bytes"] / 2**20 for p in mine], "o-", color=colour, label=text)
        for p in mine:
            axis.annotate(
                f"{p['peak_bytes'] / 2**20:.3g}",
                (p["bank"], p["peak_bytes"] / 2**20),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=colour,
            )
    banks = sorted({p["bank"] for p in points})
    logits = {p["bank"]: p["logits_bytes"] / 2**20 for p in points}
    axis.plot(banks, [logits[b] for b in banks], "--", color="#999999", label="one matrix of logits")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(banks, [f"{b:,}" for b in banks])
    axis.minorticks_off()
    axis.set_xlabel("negatives in the bank, 256 wide")
    axis.set_ylabel("MiB beyond the inputs")
    axis.set_title(f"4 x 256 queries, float32, {MODES[1]}: peak memory of the loss ({where(result)})", fontsize=10)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return png(figure)


SUITE = Suite(
    name="contrastive",
    title="Contrastive losses, sampling and weights",
    operators=NAMES,
    about=ABOUT,
    legend="Features have width 256; rows are normalised inside every contestant; gradients "
    "go to the queries (losses), to the maps (sample, tap), to maps and networks (path). GF/s: of the one (fwd) or two "
    "matrix products a loss needs. Peak memory: allocations minus releases during one call, on a CPU of torch's "
    "allocator, which does not see the 1 MiB or so of scratch of each thread of the C++ operators.",
    column=("GF/s", "gflops"),
    groups=(("operator", "dtype", "mode"),),
    cases=cases,
    work=work,
    describe=lambda case: {"batch": case.batch, "patches": case.patches, "bank": case.bank},
    modes=lambda case: (True,) if case.name == "tap_patches" else (False, True),  # a tap is there for its backward
    flops=products_flops,
    extras=_memory,
    pictures=lambda result: {"memory": memory_picture(result)} if result["memory"] else {},
)
