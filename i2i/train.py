"""The training loop: data in; losses, pictures and checkpoints out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2i import checkpoint
from i2i.config import Config
from i2i.cut import CUT
from i2i.data import UnpairedFolders, batches, find_folders
from i2i.errors import TrainingDiverged, UsageError
from i2i.pictures import save_grid
from i2i.progress import LossLog, ProgressBar, StopRequest
from i2i.samples import SamplePhotographs

EPOCHS = 400  # published: 200 at the full learning rate, 200 while it falls to 0
FLUSH_SECONDS = 1.0  # losses go to file and screen this often; each time waits for the device


@dataclass
class Result:
    """How a run ended. PSNR in dB over the held-out pictures, None where no true answer is known."""

    step: int
    checkpoint: Path
    picture: Path
    stopped_by: int  # the signal's number, 0 when all steps were done
    psnr_start: float | None = None
    psnr_end: float | None = None
    psnr_input: float | None = None  # of the input left as it is: what doing nothing would score


def train(
    config: Config,
    output: Path,
    *,
    device: torch.device | str = "cpu",
    impl: str = "auto",
    resume: dict[str, Any] | None = None,
) -> Result:
    """Train CUT as `config` says and write everything under `output`.

    `resume`: contents of a checkpoint (`checkpoint.read`); the run goes on as if it had never stopped.
    """
    data = open_data(config)
    if not config.steps:
        config = replace(config, steps=-(-EPOCHS * len(data) // config.batch_size))
    if isinstance(data, UnpairedFolders):
        data.full_view_from = decay_start(config.steps) * config.batch_size
    done = resume["step"] if resume else 0
    if done >= config.steps:
        raise UsageError(f"already trained {done} of {config.steps} steps; ask for more with --steps")
    print(f"{data.describe()}\n{config.steps} steps of {config.batch_size} on {device}, into {output}", flush=True)

    model = CUT(config, device, impl)
    psnr_start = held_out_psnr(model, data)  # before restoring: in a resumed run, too, of the untrained network
    if resume:
        checkpoint.restore(resume, model)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    path = output / checkpoint.NAME
    log = LossLog(output / "losses.csv", done)
    bar = ProgressBar(done, config.steps, config.batch_size)
    step, shown = done, time.monotonic()
    try:
        with StopRequest() as stop:
            for real_a, real_b in batches(data, config.batch_size, done, config.steps):
                model.set_lr_factor(lr_factor(step, config.steps))
                log.add(step + 1, model.step(real_a.to(device), real_b.to(device)))
                step += 1
                ending = step == config.steps or bool(stop.signal)
                saving = step % config.save_every == 0 or ending
                if saving or time.monotonic() - shown > FLUSH_SECONDS:
                    log.flush()
                    bar.show(step, log.last)
                    shown = time.monotonic()
                if saving:
                    checkpoint.save(path, model, step)
                if step % config.sample_every == 0 or ending:
                    picture = save_pictures(output, model, data, step)
                if ending:  # not stop.signal: it may have come after the checkpoint was written
                    break
    except TrainingDiverged as error:
        kept = f"the last good checkpoint is {path}" if path.is_file() else "there was no checkpoint yet"
        raise TrainingDiverged(f"training stopped: {error}; {kept}; a lower --lr may help") from None
    finally:
        bar.close()
    stopped_by = stop.signal if step < config.steps else 0
    return Result(step, path, picture, stopped_by, psnr_start, held_out_psnr(model, data), input_psnr(data))


def open_data(config: Config) -> UnpairedFolders | SamplePhotographs:
    if not config.data:
        return SamplePhotographs(config.crop_size, config.flip, config.seed)
    return UnpairedFolders(*find_folders(config.data), config.load_size, config.crop_size, config.flip, config.seed)


def decay_start(steps: int) -> int:
    return steps // 2


def lr_factor(step: int, steps: int) -> float:
    """CUT's linear schedule in steps: 1 for the first half of the run, then falling towards 0."""
    start = decay_start(steps)
    return 1 - max(0, step - start) / (steps - start + 1)


def psnr(pictures: list[Tensor], truths: list[Tensor]) -> float:
    """Mean over pictures (3, H, W) in [-1, 1] of the peak signal-to-noise ratio in dB."""
    errors = [(x.clamp(-1, 1) - truth).square().mean() for x, truth in zip(pictures, truths, strict=True)]
    return sum(float(10 * torch.log10(4 / error)) for error in errors) / len(errors)


def held_out_psnr(model: CUT, data: UnpairedFolders | SamplePhotographs) -> float | None:
    if not isinstance(data, SamplePhotographs):
        return None
    return psnr([translate(model, picture) for picture in data.test_a], data.test_truth)


def input_psnr(data: UnpairedFolders | SamplePhotographs) -> float | None:
    return psnr(data.test_a, data.test_truth) if isinstance(data, SamplePhotographs) else None


def translate(model: CUT, picture: Tensor) -> Tensor:
    """(3, H, W) of domain A -> the same of domain B, on the CPU."""
    device = next(model.G.parameters()).device
    return model.translate(picture[None].to(device))[0].cpu()


def save_pictures(output: Path, model: CUT, data: UnpairedFolders | SamplePhotographs, step: int) -> Path:
    """A grid of inputs and translations, and the true answers where they are known."""
    path = output / "pictures" / f"step_{step:07d}.png"
    if isinstance(data, SamplePhotographs):
        triples = zip(data.test_a, data.test_truth, strict=True)
        rows = [(picture, translate(model, picture), truth) for picture, truth in triples]
        save_grid(path, ("held-out input", f"translation, step {step}", "true answer"), rows)
    else:
        rows = [(picture, translate(model, picture)) for picture in data.preview(4)]
        save_grid(path, ("input", f"translation, step {step}"), rows)
    return path
