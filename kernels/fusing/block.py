"""What `fuse` makes of a block that calls its norms by name: a forward in which they take along what follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from kernels.fusing.classes import derive, root_class, underive, why_not_derived
from kernels.fusing.finish import Tail, TakesTail
from kernels.fusing.heads import is_head
from kernels.fusing.recognised import is_harmless
from kernels.fusing.report import FuseReport, place
from kernels.fusing.rewriting import Program, parts_are_as_they_were
from kernels.fusing.tracing import arguments_of, programs_of


class _Programs:
    """Programs of a block. A deep copy shares them, since they hold nothing of the object. A pickle leaves them out,
    since code has no name to be found by, and they are made again when the block is unpickled: not at its first call,
    where other threads may run modules, whose calls torch.fx changes for all while it traces."""

    def __init__(self, of_mode: dict[bool, Program] | None = None, count: int = 0):
        self.of_mode = of_mode or {}
        self.count = count  # of the arguments of a call

    def __deepcopy__(self, memo: dict[int, Any]) -> _Programs:
        return self

    def __reduce__(self):
        return (_Programs, ())


class FusedBlock(TakesTail):
    """The rewritten forward, as long as nothing was assigned to the block and its children are what they were."""

    training: bool
    _fused_programs: _Programs | None = None  # also of an object that the class itself has made

    def forward(self, *args, **kwargs):
        if kwargs:
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] (of the other base)
        return self.run_with(args, None)

    def run_with(self, args: tuple[Any, ...], tail: Tail | None) -> Any:
        program = self._program(args)
        if program is not None and (tail is None or program.takes_tail):
            return program.run(self, tail, *args)
        if program is not None:
            y = program.run(self, None, *args)
        else:
            y = super().forward(*args)  # pyright: ignore[reportAttributeAccessIssue]
        return y if tail is None else tail.after(y)

    def takes_tail(self) -> bool:
        programs = self._fused_programs
        return programs is not None and any(p.takes_tail for p in programs.of_mode.values())

    def _program(self, args: tuple[Any, ...]) -> Program | None:
        programs = self._fused_programs
        if programs is None or len(args) != programs.count or _has_any_global_hook():
            return None
        program = programs.of_mode[self.training]
        if not all(isinstance(x, torch.Tensor) for x in args) or not parts_are_as_they_were(self, program):  # pyright: ignore[reportArgumentType]
            return None
        return program

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # pyright: ignore[reportAttributeAccessIssue]
        held = self.__dict__.get("_fused_programs")
        if held is not None and not held.of_mode:
            self.__dict__["_fused_programs"] = _make(self)[0]

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if not is_harmless(self, name):
            self.__dict__["_fused_programs"] = None

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__["_fused_programs"] = None


def _make(module: Any) -> tuple[_Programs | None, str]:
    """The programs of a block, None if there is nothing to merge; or why not."""
    names = arguments_of(module)
    if names is None:
        return None, "its forward takes any number of arguments"
    if not isinstance(module, FusedBlock):
        why = why_not_derived(module, FusedBlock)
        if why:
            return None, why
    own: Any = module  # which the check above has narrowed
    programs, why = programs_of(own)
    return (_Programs(programs, len(names)) if programs and not why else None), why


def merge(name: str, module: nn.Module, report: FuseReport) -> None:
    """Lets `module`, no Sequential, run together what may, and reports it; or why not, where its norms are its own."""
    children = dict(module.named_children())
    if type(module).__module__.startswith(("torch.nn.", "kernels.")) or not any(map(_may_help, children.values())):
        return
    if root_class(module).forward is nn.Module.forward:  # a container, whose parts are called one by one
        return
    programs, why = _make(module)
    if programs is not None and not isinstance(module, FusedBlock):
        why = derive(module, FusedBlock)
    if why and any(map(is_head, children.values())):
        report.left.append((name, f"what follows its norms is not merged: {why}"))
    if programs is None or why:
        return
    vars(module)["_fused_programs"] = programs
    for what, child, head in sorted({one for program in programs.of_mode.values() for one in program.merges}):
        at = place(name, child) if child else name
        report.merged.append((at, f"{what} merged into {place(name, head)}"))


def _may_help(module: nn.Module) -> bool:
    """Whether what a block does behind this child may be part of a norm's call."""
    if isinstance(module, nn.Sequential):
        return any(map(_may_help, list(module)[-2:]))
    return is_head(module) or isinstance(module, TakesTail)


def give_back(module: nn.Module) -> None:
    if isinstance(module, FusedBlock):
        underive(module, FusedBlock)
        vars(module).pop("_fused_programs", None)
