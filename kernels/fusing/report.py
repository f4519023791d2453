"""What `fuse` says it has done to a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FuseReport:
    """What `fuse` has done to a model, in all its calls: (module name, text) pairs. `str(report)` is the readable form.

    `replaced` are the modules that compute by this library, `merged` those that a Sequential computes in the call of
    the norm before them. No module is in both.
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    implementation: str = ""
    merged: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced, {len(self.merged)} merged, {len(self.left)} left"
        lines = [f"kernels.fuse: {counts}; {self.implementation}"]
        lines += [f"  {name or '(the model itself)'}: {what}" for name, what in self.replaced + self.merged]
        lines += [f"  {name or '(the model itself)'}: left, {why}" for name, why in self.left]
        return "\n".join(lines)


def place(name: str, key: str) -> str:
    """The name of the child `key` of the module `name`; the model itself has the empty name."""
    return f"{name}.{key}" if name else key
