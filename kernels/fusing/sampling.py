"""The part of `fuse` that knows CUT's F: the module that samples features at random positions of several maps."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from kernels import _guard, backends
from kernels._checks import FLOATING
from kernels.fusing.classes import Derived, derive, root_class, set_class, underive
from kernels.fusing.trial import (
    as_now,
    attributes,
    copy_without_hooks,
    random_left_alone,
    random_state,
    set_random_state,
)
from kernels.nce.images import mark_images
from kernels.patches import sample_patches

Tensor = torch.Tensor


class _How(NamedTuple):
    """What a sampler was seen to do: draw by the generator of "numpy" or "torch"; hand back ids that it was given as
    the objects they are, or copies; run the children `mlp0`, `mlp1`, ... (None: there are none), then `norm`."""

    draw: str
    keeps_ids: bool
    mlp: str | None
    norm: str


class _Call(NamedTuple):
    """The names of the forward's three arguments, and the default of the second."""

    names: tuple[str, ...]
    num_patches: int


class _FusedSampler(Derived):
    """`sample_patches` in place of a forward that was seen to sample, with the module's own MLPs and normalisation.

    Its own forward runs for every call that is not like those that were tried, and for the one that makes the MLPs.
    `_fused_how`: by type of device, what was seen there, or why that is nothing; it is tried where it is first called,
    since a generator belongs to a device. `_fused_before`, `_fused_after`: plain attributes of the module as they have
    to be, before its MLPs are made and after.
    """

    _fused_how: dict[str, _How | str] = {}
    _fused_call: _Call
    _fused_before: dict[str, object]
    _fused_after: dict[str, object]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = None if torch.compiler.is_compiling() else self._as_it_was_tried(args, kwargs)
        if call is None:
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] (of the other base)
        how, feats, num_patches, ids = call
        if how is not None and self._served(how, feats, ids):
            rows, ids = _sample(cast(nn.Module, self), how, feats, num_patches, ids)
        else:
            rows, ids = super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        for x, sampled in zip(feats, rows):
            mark_images(sampled, len(x))
        return rows, ids

    def _as_it_was_tried(self, args: tuple, kwargs: dict) -> tuple[_How | None, Any, int, Any] | None:
        """The three arguments, if this is a call of the kind that was tried; before them what was seen, or None as long
        as the MLPs are to be made."""
        if not self._fused_how or len(args) + len(kwargs) > 3:
            return None
        names, default = self._fused_call
        given = dict(zip(names, args)) | kwargs
        if len(given) < len(args) + len(kwargs) or not given.keys() <= set(names):
            return None
        feats, num_patches, ids = given.get(names[0]), given.get(names[1], default), given.get(names[2])
        if (
            not isinstance(feats, (list, tuple))
            or not feats
            or not all(type(x) is Tensor and x.dim() == 4 and x.dtype in FLOATING and x.numel() for x in feats)
            or any(x.device != feats[0].device for x in feats)
            or type(num_patches) is not int
            or num_patches < 1
            or not (ids is None or (isinstance(ids, (list, tuple)) and len(ids) >= len(feats)))
            or torch.is_inference_mode_enabled()
            or _guard.why_not(feats, ("feats",))
        ):
            return None
        now = attributes(cast(nn.Module, self))
        made = as_now(self._fused_after, now)
        if not (made or as_now(self._fused_before, now)):
            return None
        how = self._seen_on(feats[0].device)
        return (how if made else None, feats, num_patches, ids) if isinstance(how, _How) else None

    def _seen_on(self, device: torch.device) -> _How | str:
        found = self._fused_how.get(device.type)
        if found is None and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            found = _try(cast(nn.Module, self), device)[0]
            self._fused_how[device.type] = found
        return found or "not tried"

    def _served(self, how: _How, feats: Any, ids: Any) -> bool:
        """Whether `_sample` does what the own forward does, and no slower."""
        return (
            (how.mlp is None or all(f"{how.mlp}{i}" in self._modules for i in range(len(feats))))
            and (ids is None or all(map(_are_positions, ids, feats)))
            and all(map(_gains, feats))
        )


def _gains(x: Tensor) -> bool:
    """On the CPU torch's own sampling of a map in channels last takes as long (6.2 ms forward and backward for the maps
    of CUT at 256 x 256, 6.0 ours), and a third of the reference's time; that of a contiguous one takes 8 times ours."""
    return x.is_contiguous() if x.device.type == "cpu" else backends.choose("auto", x) != "reference"


def _are_positions(ids: object, x: Tensor) -> bool:
    """Whether ids are positions of x; on a GPU, where looking is waiting, only of ids that were drawn here."""
    if type(ids) is not Tensor or ids.dtype != torch.int64 or ids.dim() != 1 or not len(ids) or ids.device != x.device:
        return False
    count = x.shape[2] * x.shape[3]
    if vars(ids).get("_fused_positions") == (count, ids._version):
        return True
    if ids.device.type != "cpu":
        return False
    low, high = ids.aminmax()
    return 0 <= int(low) and int(high) < count


def _sample(module: nn.Module, how: _How, feats: Any, num_patches: int, ids: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What the own forward does map by map. So does this where both positions and MLPs (by dropout) may draw from
    torch's generator; else it samples all maps in one call."""
    together = ids is not None or how.draw == "numpy" or how.mlp is None
    found, positions = [], []
    for some in [range(len(feats))] if together else [[i] for i in range(len(feats))]:
        at = [_positions(how, feats[i], num_patches, None if ids is None else ids[i]) for i in some]
        positions += at
        for i, rows in zip(some, sample_patches([feats[i] for i in some], ids=at)[0]):
            rows = rows.flatten(0, 1)
            if how.mlp is not None:
                rows = module._modules[f"{how.mlp}{i}"](rows)  # pyright: ignore[reportOptionalCall]
            found.append(module._modules[how.norm](rows))  # pyright: ignore[reportOptionalCall]
    return found, positions


def _positions(how: _How, x: Tensor, num_patches: int, ids: Tensor | None) -> Tensor:
    count = x.shape[2] * x.shape[3]
    if ids is not None:
        at = ids if how.keeps_ids else ids.clone()
    elif how.draw == "torch":
        at = torch.randperm(count, device=x.device)[:num_patches]
    else:
        at = torch.tensor(np.random.permutation(count)[:num_patches], dtype=torch.long, device=x.device)
    if not at.is_inference():  # which has no version
        vars(at)["_fused_positions"] = (count, at._version)
    return at


# ---- what fuse asks --------------------------------------------------------------------------------------------------


def looks_like(module: nn.Module) -> bool:
    """A child without parameters, which normalises; MLPs with names that count, or none yet; a forward of three
    arguments, of which the second is an int by default and the third None."""
    if isinstance(module, _FusedSampler):
        return True
    if isinstance(module, torch.jit.ScriptModule) or module._parameters or module._buffers or not module._modules:
        return False
    return _children(module) is not None and _call(module) is not None


def name_of(module: nn.Module) -> str:
    hows = module._fused_how.values() if isinstance(module, _FusedSampler) else ()
    draws = [how.draw for how in hows if isinstance(how, _How)]
    return f"sample_patches, positions drawn by {draws[0]}" if draws else ""


def give_back(module: nn.Module) -> None:
    if not isinstance(module, _FusedSampler):
        return
    underive(module, _FusedSampler)
    for key in ("_fused_how", "_fused_call", "_fused_before", "_fused_after"):
        vars(module).pop(key, None)


def take(module: nn.Module) -> str:
    """Puts the operator behind the forward of `module`, which looks like a sampler; or says why not."""
    weight = next(module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    how, after = _try(module, device)
    # without MLPs it does not show where it will make them
    if isinstance(how, str) and weight is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        how, after = _try(module, device)
    call = _call(module)
    again = isinstance(module, _FusedSampler)
    if not isinstance(how, _How) or call is None:
        if again:
            vars(module)["_fused_how"] = {}
        return str(how)
    why = "" if again else derive(module, _FusedSampler)
    if why:
        return why
    vars(module).update(
        _fused_how={device.type: how}, _fused_call=call, _fused_before=attributes(module), _fused_after=after
    )
    return ""


def _call(module: nn.Module) -> _Call | None:
    try:
        _, *three = inspect.signature(root_class(module).forward).parameters.values()
    except (TypeError, ValueError):  # not written in Python, or without arguments
        return None
    if len(three) != 3 or any(p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in three):
        return None
    feats, num_patches, ids = three
    if feats.default is not feats.empty or type(num_patches.default) is not int or ids.default is not None:
        return None
    return _Call(tuple(p.name for p in three), num_patches.default)


def _children(module: nn.Module) -> tuple[str | None, str] | None:
    """(what the names of its MLPs begin with, None without; the name of the child that normalises)."""
    names = list(module._modules)
    heads = {found[1] for name in names if (found := re.fullmatch(r"(.*\D)0", name))}
    mlps = [name for name in names if any(re.fullmatch(re.escape(head) + r"\d+", name) for head in heads)]
    others = [name for name in names if name not in mlps]
    if len(others) != 1 or len(heads) > 1:
        return None
    head = heads.pop() if heads else None
    norm = module._modules[others[0]]
    if norm is None or list(norm.children()) or list(norm.parameters()) or list(norm.buffers()):
        return None
    if head is not None and set(mlps) != {f"{head}{i}" for i in range(len(mlps))}:
        return None
    return head, others[0]


# ---- trying it out ---------------------------------------------------------------------------------------------------


def _try(module: nn.Module, device: torch.device) -> tuple[_How | str, dict[str, object]]:
    """What a copy of the module was seen to do on that device, with gradients, or why that is not what `_sample` does;
    and its plain attributes after it has made its MLPs. Neither the module nor a random generator notices."""
    if device.type not in ("cpu", "cuda"):
        return f"its random numbers on {device.type} are not known here", {}
    with (
        random_left_alone(device),
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        warnings.simplefilter("ignore")  # CUT's makes a tensor of a tensor
        try:
            return _tried(module, device)
        except Exception as error:  # somebody else's code, which this was only a guess about: left as it is
            return f"it could not be tried on small maps ({type(error).__name__}: {error})", {}


def _tried(module: nn.Module, device: torch.device) -> tuple[_How | str, dict[str, object]]:
    trial: Any = copy_without_hooks(module)
    set_class(trial, root_class(module))
    generator = torch.Generator("cpu").manual_seed(0)
    weights = [next((p for p in mlp.parameters() if p.dim() == 2), None) for mlp in trial.children()]
    widths = [w.shape[1] for w in weights if w is not None] or [3, 5]
    dtype = next((w.dtype for w in weights if w is not None), torch.get_default_dtype())

    def maps(batch: int) -> list[Tensor]:
        """Of 20, 24, ... positions, every other one channels last."""
        found = []
        for i, width in enumerate(widths):
            x = torch.randn((batch, width, 5 + i, 4), generator=generator, device="cpu").to(device, dtype)
            found.append((x.contiguous(memory_format=torch.channels_last) if i % 2 else x).requires_grad_())
        return found

    was = attributes(trial)
    trial.forward(maps(1), 22, None)  # not trial(...): its hooks have no business here. This makes the MLPs.
    after = attributes(trial)
    parts = _children(trial)
    if parts is None:
        return "its children are not one normalisation and MLPs with names that count", {}
    changed = {
        name: value for name, value in after.items() if name not in was or not as_now({0: was[name]}, {0: value})
    }
    _, ids = trial.forward(maps(1), 22, None)
    if not as_now(after, attributes(trial)):
        return "its attributes change from call to call", {}
    if not isinstance(ids, list) or not all(type(at) is Tensor and at.dtype == torch.int64 for at in ids):
        return "its positions are not a list of tensors of int64", {}
    keeps = trial.forward(maps(1), 22, ids)[1][0] is ids[0]
    hows = [_How(draw, keeps, *parts) for draw in ("torch", "numpy")]
    for training in (True, False):
        trial.train(training)
        for batch, at in ((2, None), (3, ids)):
            feats = maps(batch)
            start = random_state(device)
            want = trial.forward(feats, 22, at)
            end = random_state(device)
            for how in list(hows):
                set_random_state(start, device)
                got = _sample(trial, how, feats, 22, at)
                if random_state(device) != end or not _agree(trial, feats, got, want, generator):
                    hows.remove(how)
    if not hows:
        return "on small maps it computes something else", {}
    return hows[0], attributes(module) | changed


def _agree(trial: nn.Module, feats: list[Tensor], got: Any, want: Any, generator: torch.Generator) -> bool:
    """Whether these are the same rows, ids and gradients."""
    if type(want) is not tuple or len(want) != 2 or [type(part) for part in want] != [list, list]:
        return False
    (rows, ids), (own_rows, own_ids) = got, want
    if len(rows) != len(own_rows) or len(ids) != len(own_ids):
        return False
    for at, own in zip(ids, own_ids):
        if type(own) is not Tensor or own.dtype != at.dtype or own.device != at.device or not torch.equal(own, at):
            return False
    if any((x.shape, x.dtype, x.requires_grad) != (y.shape, y.dtype, y.requires_grad) for x, y in zip(rows, own_rows)):
        return False
    inputs = [*feats, *trial.parameters()]
    weights = [torch.randn(x.shape, generator=generator, device="cpu").to(x) for x in rows]
    grads, own_grads = (torch.autograd.grad(found, inputs, weights, allow_unused=True) for found in (rows, own_rows))
    return all(map(_close, (*rows, *grads), (*own_rows, *own_grads)))


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    most = b.abs().max().item()
    return torch.allclose(a, b, rtol=0, atol=64 * torch.finfo(b.dtype).eps * most)
