"""What `fuse` says it has done to a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FuseReport:
    """What `fuse` has done to a model, in all its calls: (module name, text) pairs. `str(report)` is the readable form.

    `replaced` are the modules that compute by this library, `merged` those that a Sequential computes in the call of
    the norm before them, or a block in the call of one of its norms. No module is in both. `notes`: what `accelerate`
    has done beside.
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    implementation: str = ""
    merged: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def sort(self, names: list[str]) -> None:
        """Puts all entries in the order of these modules; others stand where their owner does."""
        order = {name: i for i, name in enumerate(names)}

        def position(entry: tuple[str, str]) -> tuple[int, str]:
            owner = entry[0]
            while owner not in order:
                owner = owner.rpartition(".")[0]
            return order[owner], entry[0]

        for entries in (self.replaced, self.merged, self.left):
            entries.sort(key=position)

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced, {len(self.merged)} merged, {len(self.left)} left"
        lines = [f"kernels.fuse: {counts}; {self.implementation}"]
        lines += [f"  {name or '(the model itself)'}: {what}" for name, what in self.replaced + self.merged]
        lines += [f"  {name or '(the model itself)'}: left, {why}" for name, why in self.left]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def place(name: str, key: str) -> str:
    """The name of the child `key` of the module `name`; the model itself has the empty name."""
    return f"{name}.{key}" if name else key
