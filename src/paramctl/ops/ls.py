"""Header tier, and values for digests: one parameter a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paramctl import sharing
from paramctl.checkpoint import Checkpoint, Param
from paramctl.ops import opened
from paramctl.report import Column, Report, few
from paramctl.select import Selection

COLUMNS = (
    Column("name", "name"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("numel", "count"),
    Column("nbytes", "bytes"),
    Column("kind"),
    Column("requires_grad"),
    Column("stride", "shape"),
    Column("storage", "name"),
    Column("storage_offset", "count"),
    Column("tie", "name"),
    Column("module"),
    Column("file", "name"),
)
DIGEST = Column("digest", "digest")
_DIGEST = "paramctl.values.digest"  # of the values tier: a door, so that a list costs no numpy


def ls(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    digest: bool = False,
    tell: Callable[[int], None] | None = None,
) -> Report:
    """A row for each chosen parameter; `tie` is the first name that has its elements too.

    `module` is the type of the module that holds it, where the source knows; of a tensor of an optimizer's state it is
    the name of the parameter that the state is of.

    Args:
        checkpoint: what the parameters are of; with values, if they are digested.
        selection: of it.
        digest: with a column more, the SHA-256 of dtype, shape and elements.
        tell: told the bytes that are read, as they are.

    Raises:
        ParamctlError: bytes that cannot be read.
    """
    ties = sharing.first_names(checkpoint.params.values())
    types = {path: module.type or None for path, module in checkpoint.modules.items()}
    states = _optimizer_names(checkpoint)
    own, shown = str(checkpoint.source.path), checkpoint.source.name
    rows = []
    sizes: dict[Any, tuple[list[int], int, int, list[int]]] = {}  # rows of one geometry hold the same lists
    for param in selection.chosen:
        name, dtype, storage = param.name, param.dtype.name, param.storage
        geometry = (dtype, param.shape, param.stride)
        if geometry not in sizes:
            sizes[geometry] = (list(param.shape), param.numel, param.nbytes, list(param.stride))
        shape, numel, nbytes, stride = sizes[geometry]
        path = storage.extents[0].path if storage.extents else own
        rows.append(
            (
                name,
                shape,
                dtype,
                numel,
                nbytes,
                param.kind,
                param.requires_grad,
                stride,
                storage.key,
                param.storage_offset,
                ties.get(name),
                states.get(name) or types.get(name.rpartition(".")[0]),
                shown if path == own else path,
            )
        )
    totals = sharing.totals(checkpoint, selection.chosen)
    if not digest:
        return Report(COLUMNS, tuple(rows), totals, shown, checkpoint.format)
    digests, notes = _digests(selection.chosen, tell)
    longer = tuple((*row, text) for row, text in zip(rows, digests, strict=True))
    return Report((*COLUMNS, DIGEST), longer, totals, shown, checkpoint.format, notes=few(notes))


def _digests(params: Sequence[Param], tell: Callable[[int], None] | None) -> tuple[list[str | None], list[str]]:
    """Of names of the very same elements one is read."""
    keys = [sharing.identity(param) for param in params]
    once = dict(zip(reversed(keys), reversed(params), strict=True))
    made, notes = opened(_DIGEST, "ls --digest").digests(once.values(), tell)
    known = dict(zip(once, made, strict=True))
    return [known[key] for key in keys], notes


def _optimizer_names(checkpoint: Checkpoint) -> Mapping[str, str]:
    if not any(name.startswith("state.") or ".state." in name for name in checkpoint.params):
        return {}
    from paramctl.optimizer import optimizer_names  # noqa: PLC0415 - 3 ms that only an optimizer pays

    return optimizer_names(checkpoint)
