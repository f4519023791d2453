"""The training loop: data in; losses, pictures and checkpoints out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2i import distributed
from i2i.config import Config
from i2i.data import Dataset, batches, open_training_data
from i2i.data.layouts import Layout
from i2i.devices import convolutions_by_trial
from i2i.errors import NotSaved, TrainingDiverged, UsageError
from i2i.files import CHECKPOINT
from i2i.inference.weights import save_published
from i2i.methods import METHODS, Method, check_method
from i2i.training import checkpoint, init_from, resuming
from i2i.training.claim import claimed
from i2i.training.pictures import plot_losses, save_grid
from i2i.training.progress import LossLog, ProgressBar, StopRequest
from i2i.training.schedule import Schedule

FLUSH_SECONDS = 1.0  # losses go to file and screen this often; each time waits for the device


@dataclass
class Result:
    """How a run ended. `start`, `end` and `untouched` (the score of the input as it is) are in the unit of `metric`;
    None where no true answer is known."""

    step: int
    checkpoint: Path
    picture: Path
    stopped_by: int  # the signal's number, 0 when all steps were done
    metric: str = ""
    start: float | None = None
    end: float | None = None
    untouched: float | None = None


def train(
    method: str,
    config: Config,
    output: Path | str | None = None,
    *,
    device: torch.device | str = "cpu",
    impl: str = "auto",
    resume: dict[str, Any] | None = None,
) -> Result:
    """Train `method` (a name of METHODS) as `config` says and write everything under `output`; by default the first
    free one of runs/<method>-1, -2, ...

    `resume`: contents of a checkpoint (`checkpoint.read`); the run goes on as if it had never stopped. Under torchrun
    every process calls this, with its own device. In the main thread, Ctrl-C, SIGTERM and SIGHUP save and end the run;
    called from another thread it runs to its end. (Two runs at once in one process share torch's random numbers, and
    with dropout are not repeatable.)

    Raises:
        UsageError: what was given is wrong, another run is writing into `output`, or a work that is there would be
            overwritten; nothing was begun.
        TrainingDiverged: a loss or a weight is no longer finite.
        NotSaved: a file could not be written, because the disk is full, say. The last checkpoint is whole.
    """
    kind = METHODS[check_method(method)].Config
    if not isinstance(config, kind):
        raise UsageError(f"config of {method} must be a {kind.__name__}, got {type(config).__name__}")
    if resume:
        resuming.check_settings(resume, method, config)
    with claimed(None if output is None else Path(output), method, resume) as folder:
        run, done = prepare(method, config, folder, device, impl, resume)
        return run.train(done)


def prepare(
    method: str, config: Config, output: Path, device: torch.device | str, impl: str, resume: dict[str, Any] | None
) -> tuple[Run, int]:
    """(what will train, steps that are done)."""
    data = open_training_data(config)
    per_step = config.batch_size * distributed.world()
    last = -(-len(data) * (config.n_epochs + config.n_epochs_decay) // per_step)
    last = min(config.steps or last, last)
    if METHODS[method].full_view_in_decay and isinstance(data, Layout):
        data.full_view_from = len(data) * config.n_epochs
    if resume:
        resuming.check_data(resume, resuming.facts(data, torch.device(device), config.precision))
    done = resume["step"] if resume else 0
    if done >= last:
        raise UsageError(f"already trained {done} of {last} steps; ask for more with steps or n_epochs")
    model = METHODS[method](config, device, impl)
    if config.init_from and not resume:
        print_once(init_from.initialise(model))
    run = Run(model, data, output, last)
    run.start = run.held_out()  # before restoring: in a resumed run, too, of the untrained network
    if resume:
        checkpoint.restore(resume, run.model, run.schedule)
        resuming.tell_changes(resume, run.made_with)
    else:
        run.broadcast_weights()
    images = "1 image" if per_step == 1 else f"{per_step} images"
    epochs = f"{last * per_step / len(data):.4g} epochs"
    print_once(f"{data.describe()}\n{last} steps of {images} ({epochs}) on {device}, into {output}")
    if model.device.type == "cuda":
        how = model.graphs.reason or "recorded and replayed as CUDA graphs"
        print_once(f"steps are {'launched one by one: ' * bool(model.graphs.reason)}{how}")
    return run, done


def print_once(text: str) -> None:
    """To stdout, of the first process only."""
    if distributed.rank() == 0:
        print(text, flush=True)


class Run:
    def __init__(self, model: Method, data: Dataset, output: Path, last: int):
        self.model, self.data, self.output, self.last = model, data, output, last
        self.config = model.config
        self.schedule = Schedule(model.optimizers, model.config)
        self.per_step = model.config.batch_size * distributed.world()
        self.start: float | None = None
        self.made_with = resuming.facts(data, self.model.device, self.config.precision)
        self.picture = output / "pictures"

    def broadcast_weights(self) -> None:
        """The weights of the first process to all; random numbers that need not agree (dropout, noise) apart."""
        for net in self.model.networks.values():
            distributed.same_everywhere([*net.parameters(), *net.buffers()])
        torch.manual_seed(self.config.seed + distributed.rank())

    def train(self, done: int) -> Result:
        path = self.output / CHECKPOINT
        self.saved = done
        with self.writing(done):
            log = LossLog(self.output, done, self.config.tensorboard)
        bar = ProgressBar(done, self.last, self.per_step)
        step, shown = done, time.monotonic()
        try:
            with StopRequest() as stop, convolutions_by_trial("crop" in self.config.preprocess):
                for batch in self.batches(done):
                    losses = self.model.step(*batch)
                    step += 1
                    log.add(step, losses)
                    self.schedule.add(losses[name] for name in self.model.generator_losses if name in losses)
                    with self.writing(step):
                        self.end_epochs(step)
                    signal, due = distributed.agree(stop.signal, log.full or time.monotonic() - shown > FLUSH_SECONDS)
                    ending = step == self.last or bool(signal)
                    saving = step % self.config.save_every == 0 or ending
                    if saving or due:
                        with self.writing(step):
                            log.flush()
                        bar.show(step, log.last)
                        shown = time.monotonic()
                    if saving:
                        checkpoint.require_finite(self.model, step)
                    with self.writing(step):
                        if step % self.config.sample_every == 0 or ending:
                            self.show(step)
                        if saving:
                            self.save(path, step)
                    if ending:  # not stop.signal: it may have come after the checkpoint was written
                        break
            with self.writing(step):
                log.close()
        except TrainingDiverged as error:
            kept = f"the last good checkpoint is {path}" if self.saved else "there was no checkpoint yet"
            raise TrainingDiverged(f"training stopped: {error}; {kept}; a lower lr may help") from None
        finally:
            bar.close()
            with contextlib.suppress(OSError):  # told already
                log.close()
        return Result(
            step,
            path,
            self.picture,
            signal if step < self.last else 0,
            getattr(self.data, "metric", ""),
            self.start,
            self.held_out(),
            self.held_out(lambda images, *_: images),
        )

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """A full disk ends the run: what cannot be kept is not worth computing, and resuming computes it again."""
        try:
            yield
        except OSError as error:
            kept = f"going on from step {self.saved} with --resume {self.output}" if self.saved else "beginning anew"
            reason = str(error) if error.strerror is None else f"{error.filename or self.output}: {error.strerror}"
            raise NotSaved(f"training stopped after step {step}: {reason}; make room before {kept}") from error

    def batches(self, done: int):
        return batches(
            self.data,
            self.config.batch_size,
            done,
            self.last,
            threads=max(1, self.config.num_threads),
            rank=distributed.rank(),
            world=distributed.world(),
            device=self.model.device if self.model.device.type == "cuda" else None,
        )

    def epoch(self, step: int) -> int:
        """Epochs that are over after so many steps."""
        return step * self.per_step // len(self.data)

    def end_epochs(self, step: int) -> None:
        """Those that end with this step: several where an epoch is smaller than a step."""
        for over in range(self.epoch(step - 1) + 1, self.epoch(step) + 1):
            self.schedule.end_epoch()
            if over % self.config.keep_every == 0:
                self.save_weights(str(over))

    def save(self, path: Path, step: int) -> None:
        """The checkpoint comes last of all that a step writes: a run that is killed in between writes it again."""
        self.save_weights("latest")
        checkpoint.save(path, self.model, self.schedule, step, self.made_with)
        self.saved = step

    def save_weights(self, prefix: str) -> None:
        """Files that the published code loads too."""
        if distributed.rank() == 0:
            save_published(self.output, prefix, self.model.networks)
            averages = {name: average.module for name, average in self.model.averages.items()}
            save_published(self.output, f"{prefix}_ema", averages)

    def show(self, step: int) -> None:
        """A grid of pictures and a plot of the losses."""
        if distributed.rank():
            return
        with preserve_rng(self.model):
            columns = self.model.visuals(*self.data.preview(4))
        self.picture = self.output / "pictures" / f"step_{step:07d}.png"
        self.picture.parent.mkdir(exist_ok=True)
        save_grid(self.picture, tuple(columns), list(zip(*columns.values(), strict=True)))
        plot_losses(self.output / "losses.csv", self.output / "losses.png")

    def held_out(self, translate: Callable[..., Tensor] | None = None) -> float | None:
        """The score of the model, or of another translation, where the data knows the true answers."""
        score = getattr(self.data, "held_out", None)
        if score is None:
            return None
        with preserve_rng(self.model):
            return score(translate or self.model.translate)


def preserve_rng(model: Method) -> contextlib.AbstractContextManager[None]:
    """Looking must not change the run: random numbers that it draws are put back."""
    return torch.random.fork_rng([model.device] if model.device.type == "cuda" else [])
