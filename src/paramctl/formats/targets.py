"""Header tier: the formats that are written anew, and what each can hold.

A target is a module with `DTYPES` and `write(outline, file, pourer)`, or for a folder `write(outline, folder, pourer)`,
and a row here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from paramctl.errors import FileError, ParamctlError, nearest, shortened

Ties = Literal["storage", "alias", "region", ""]


class Target(NamedTuple):
    """A row. `suffixes` are those of its files; a folder has none."""

    name: str
    module: str
    suffixes: tuple[str, ...] = ()
    ties: Ties = ""  # how names of the very same elements are kept as one
    holds_metadata: bool = False
    nests: bool = False  # it holds dicts in dicts, and what is no tensor
    words: tuple[str, ...] = ()  # what people call it besides

    @property
    def is_folder(self) -> bool:
        return not self.suffixes


TARGETS: dict[str, Target] = {
    row.name: row
    for row in (
        Target(
            "safetensors",
            "paramctl.formats.safetensors_writer",
            (".safetensors",),
            ties="alias",
            holds_metadata=True,
            words=("st",),
        ),
        Target(
            "torch-zip",
            "paramctl.formats.state_dict_writer",
            (".pt", ".pth", ".bin", ".ckpt"),
            ties="storage",
            holds_metadata=True,
            nests=True,
            words=("torch", "pytorch"),
        ),
        Target("npz", "paramctl.formats.npz_writer", (".npz",), words=("numpy",)),
        Target("dcp", "paramctl.formats.dcp_writer", ties="region", nests=True, words=("distcp",)),
        Target("sharded", "paramctl.formats.sharded_writer", ties="alias", holds_metadata=True, words=("shards",)),
    )
}


def named(word: str) -> Target:
    """The target that `--to` names.

    Raises:
        ParamctlError: there is none of that name.
    """
    for row in TARGETS.values():
        if word.lower() in (row.name, *row.words, *(suffix[1:] for suffix in row.suffixes)):
            return row
    close = nearest(word, list(TARGETS))
    hint = f"{' or '.join(close)}?" if close else ", ".join(TARGETS)
    raise ParamctlError(f"--to {shortened(word)}: no format that is written", hint=hint)


def of(out: str, *, to: str = "", source: str = "") -> Target:
    """The target of a path: `to` where it is given, else by the suffix; for none and `-` that of the source.

    Raises:
        ParamctlError: it cannot be told, or the suffix says another one.
    """
    if not to and out in ("", "-"):
        if source in TARGETS:
            return TARGETS[source]
        raise ParamctlError(f"{source} is not written", hint=f"--to {' or '.join(TARGETS)}")
    suffix = Path(out).suffix.lower()
    by_suffix = [row for row in TARGETS.values() if suffix in row.suffixes]
    if to:
        row = named(to)
        if by_suffix and row not in by_suffix:
            raise FileError(out, f"--to {row.name}, and its suffix says {by_suffix[0].name}")
        return row
    if by_suffix and not out.endswith("/"):
        return by_suffix[0]
    known = ", ".join(_suffixes(TARGETS.values()))
    said = f"{suffix} is no format that is written" if suffix and not os.path.isdir(out) else "of which format?"  # noqa: PTH112
    raise FileError(out, said, hint=f"{known}, or --to {' or '.join(TARGETS)}")


def _suffixes(rows: Iterable[Target]) -> list[str]:
    return [suffix for row in rows for suffix in row.suffixes]
