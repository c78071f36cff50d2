"""Header tier: what a conversion makes of checkpoints, planned; and carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from paramctl import outline as outlines
from paramctl import renaming
from paramctl.checkpoint import Checkpoint
from paramctl.contents import Window
from paramctl.errors import ParamctlError, shortened
from paramctl.formats import convert as writing
from paramctl.formats import edit, fitting
from paramctl.formats.convert import Options
from paramctl.formats.targets import Target
from paramctl.outline import Outline
from paramctl.report import Report
from paramctl.select import Selection, select


class Steps(NamedTuple):
    """What is changed on the way, in this order."""

    drop: Sequence[str] = ()
    rename: Sequence[renaming.Rule] = ()
    dtype: str = ""
    contiguous: bool = False
    shard_nbytes: int = 0
    split: bool = False
    metadata: Mapping[str, str] = MappingProxyType({})


class Conversion(NamedTuple):
    """A new checkpoint, planned."""

    outline: Outline
    target: Target
    is_edit: bool = False  # of the same format; what is not named is kept, and not told of

    @property
    def nbytes(self) -> int:
        """About what it will take."""
        return writing.nbytes(self.outline)

    @property
    def lost(self) -> tuple[str, ...]:
        """What the format cannot hold, each in words."""
        return tuple(f"{self.target.name} has no place for {what}" for what in self.outline.lost)

    def refuse_lost(self, options: Options) -> None:
        """With `is_strict`, refuse a format that cannot hold all.

        Raises:
            ParamctlError: names the first thing that would be lost.
        """
        if options.is_strict and self.lost:
            raise ParamctlError(self.lost[0], hint="without --strict it is left out")

    def rehearse(self, options: Options | None = None) -> Report:
        """A tensor a row; what is cast is read, and what that costs is told. Nothing is written.

        Raises:
            ParamctlError: a tensor would lose more than it may.
        """
        return _report(self.measured(options or Options()))

    def write(
        self,
        out: str,
        options: Options | None = None,
        *,
        in_place: bool = False,
        tell: Callable[[int], None] | None = None,
    ) -> Report:
        """Write it to a path, or `-` for standard output.

        Raises:
            FileError: it cannot be written; what was there is as it was.
            ParamctlError: something would be lost that may not be.
        """
        options = (options or Options())._replace(in_place=in_place)
        if self.is_edit:
            edit.refuse_other_suffix(self.outline.checkpoint, out)
        elif not in_place:
            writing.refuse_same(self.outline, out)
        self.refuse_lost(options)
        measured = options.is_strict or options.max_error is not None
        done = self.measured(options) if measured else self
        over = writing.write(done.outline, self.target, out, options, tell=tell)
        return _report(done if measured else done.overflowing(over))

    def measured(self, options: Options) -> Conversion:
        """With what each cast costs: what is cast is read for that.

        Raises:
            ParamctlError: it is more than it may be.
        """
        if not any(entry.is_cast for entry in self.outline.entries):
            return self
        with Window() as window:
            found = writing.losses(self.outline, window)
        for name, loss in found.items():
            _refuse_loss(name, loss, options)
        entries = tuple(
            entry._replace(detail=f"{entry.detail}: {found[entry.name].text}") if entry.name in found else entry
            for entry in self.outline.entries
        )
        made = self._replace(outline=self.outline._replace(entries=entries))
        return made.overflowing({name: loss.overflowed for name, loss in found.items() if loss.overflowed})

    def overflowing(self, counts: Mapping[str, int]) -> Conversion:
        """With a word about numbers that overflow, of which there are so many by name."""
        if not counts:
            return self
        first = shortened(next(iter(counts)))
        where = f"{len(counts):,} tensors, of which {first} is the first" if len(counts) > 1 else first
        note = f"{sum(counts.values()):,} numbers overflow, in {where}"
        return self._replace(outline=self.outline._replace(notes=(*self.outline.notes, note)))


def _refuse_loss(name: str, loss: Any, options: Options) -> None:
    most = options.max_error
    if most is not None and loss.rel_l2 > most:
        said = f"its relative error would be {loss.rel_l2:.3g}, and {most:g} is the most there may be"
        raise ParamctlError(f"{shortened(name)}: {said}", hint="a wider --dtype, or a greater --max-error")
    if (options.is_strict or most is not None) and loss.overflowed:
        said = f"{loss.overflowed:,} of its numbers overflow"
        raise ParamctlError(f"{shortened(name)}: {said}", hint="a wider --dtype holds them")


def _report(done: Conversion) -> Report:
    report = outlines.report(done.outline)._replace(notes=done.outline.notes)
    if not done.is_edit:
        return report
    changed = {entry.name for entry in done.outline.entries if entry.action in ("tie", "untie")}
    totals = outlines.totals(done.outline, changed)
    return report._replace(rows=tuple(row for row in report.rows if row[0] in changed), totals=totals)


def convert(checkpoint: Checkpoint, selection: Selection, target: Target, steps: Steps, *, at: str = "") -> Conversion:
    """What a checkpoint becomes.

    Args:
        checkpoint: that it is made of.
        selection: what of it.
        target: the format it will have.
        steps: what is changed.
        at: the path at which the checkpoint is rooted in its file.

    Raises:
        SelectError: a pattern or a renaming that fits nothing, or two tensors of one name.
        ParamctlError: tensors that the format cannot hold.
    """
    made = outlines.kept(outlines.outline(checkpoint, at=at), selection, "not selected")
    for pattern in steps.drop:
        made = _dropped(made, pattern)
    if steps.rename:
        made = outlines.renamed(made, renaming.names(steps.rename, [entry.name for entry in made.entries]))
    if steps.dtype:
        made = outlines.cast(made, outlines.dtype_of(steps.dtype))
    if steps.metadata:
        made = outlines.with_metadata(made, steps.metadata)
    made = outlines.compact(made) if steps.contiguous else made
    made = made._replace(shard_nbytes=steps.shard_nbytes, is_split=steps.split)
    if steps.shard_nbytes and target.name != "sharded":
        raise ParamctlError(f"--shard makes a folder of safetensors, and OUT is {target.name}", hint="name a folder")
    return Conversion(fitting.fitted(made, target), target)


def _dropped(made: Outline, pattern: str) -> Outline:
    """Without the tensors that a pattern chooses, and without what is no tensor, if it names that."""
    checkpoint = made.checkpoint
    is_extra = _is_there(checkpoint.extras, pattern)
    if is_extra:
        made = made._replace(without=(*made.without, pattern))
        if not any(name == pattern or name.startswith(f"{pattern}.") for name in checkpoint.params):
            return made
    gone = {param.name for param in select(checkpoint, [pattern]).chosen}
    return outlines.without(made, lambda entry: entry.name in gone, f"--drop {shortened(pattern)}")


def _is_there(extras: Any, path: str) -> bool:
    """Whether a path leads through dicts, whose keys may have dots in them, and lists."""
    pairs = extras.items() if isinstance(extras, Mapping) else enumerate(extras) if isinstance(extras, list) else ()
    for key, value in pairs:
        if path == str(key) or (path.startswith(f"{key}.") and _is_there(value, path[len(str(key)) + 1 :])):
            return True
    return False
