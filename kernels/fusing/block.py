"""What `fuse` makes of a block that calls its norms by name: a forward in which they take along what follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from kernels.fusing.classes import derive, underive
from kernels.fusing.finish import Tail, TakesTail
from kernels.fusing.heads import is_head
from kernels.fusing.recognised import is_harmless
from kernels.fusing.report import FuseReport, place
from kernels.fusing.rewriting import Program, parts_are_as_they_were
from kernels.fusing.tracing import arguments_of, programs_of


class _Programs:
    """Programs of a block. A deep copy shares them, since they hold nothing of the object; a pickle leaves them out,
    since code has no name to be found by, and the first call makes them again."""

    def __init__(self, of_mode: dict[bool, Program] | None = None, count: int = 0):
        self.of_mode = of_mode
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
        return programs is not None and any(p.takes_tail for p in (programs.of_mode or {}).values())

    def _program(self, args: tuple[Any, ...]) -> Program | None:
        programs = self._fused_programs
        if programs is None or _has_any_global_hook():
            return None
        if programs.of_mode is None and not torch.compiler.is_compiling():  # unpickled
            programs = _make(self)
            self.__dict__["_fused_programs"] = programs
        if programs is None or not programs.of_mode or len(args) != programs.count:
            return None
        program = programs.of_mode[self.training]
        if not all(isinstance(x, torch.Tensor) for x in args) or not parts_are_as_they_were(self, program):  # pyright: ignore[reportArgumentType]
            return None
        return program

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if not is_harmless(self, name):
            self.__dict__["_fused_programs"] = None

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__["_fused_programs"] = None


def _make(module: Any) -> _Programs | None:
    names = arguments_of(module)
    programs, why = programs_of(module) if names else ({}, "")
    return _Programs(programs, len(names)) if names and programs and not why else None


def merge(name: str, module: nn.Module, report: FuseReport) -> None:
    """Lets `module`, no Sequential, run together what may, and reports it; or why not, where its norms are its own."""
    children = dict(module.named_children())
    if type(module).__module__.startswith(("torch.nn.", "kernels.")) or not any(map(_may_help, children.values())):
        return
    names = arguments_of(module)
    if not names:
        return
    programs, why = programs_of(module)
    if programs and not why and not isinstance(module, FusedBlock):
        why = derive(module, FusedBlock)
    if why and any(map(is_head, children.values())):
        report.left.append((name, f"what follows its norms is not merged: {why}"))
    if not programs or why:
        return
    vars(module)["_fused_programs"] = _Programs(programs, len(names))
    for merge in sorted({merge for program in programs.values() for merge in program.merges}):
        at = place(name, merge.child) if merge.child else name
        report.merged.append((at, f"{merge.what} merged into {place(name, merge.head)}"))


def _may_help(module: nn.Module) -> bool:
    """Whether what a block does behind this child may be part of a norm's call."""
    if isinstance(module, nn.Sequential):
        return any(map(_may_help, list(module)[-2:]))
    return is_head(module) or isinstance(module, TakesTail)


def give_back(module: nn.Module) -> None:
    if isinstance(module, FusedBlock):
        underive(module, FusedBlock)
        vars(module).pop("_fused_programs", None)
