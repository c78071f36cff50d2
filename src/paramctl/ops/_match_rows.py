"""Header tier: what `match` knows of each side, and of each name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Param

Status = Literal["ok", "cast", "tie", "untied", "missing", "unexpected", "shape", "dtype"]
STATUSES: tuple[Status, ...] = ("ok", "cast", "tie", "untied", "missing", "unexpected", "shape", "dtype")
FAULTS = frozenset(("missing", "unexpected", "shape", "dtype"))


class Side(NamedTuple):
    """Names and tensors as `load_state_dict` would meet them.

    `others` are names of what is no tensor, with what is known of it; `aliases` names that only metadata declares.
    What begins with one of `passed_over` a model does not look at; `hooked` are its modules that have a say.
    """

    checkpoint: Checkpoint
    params: Mapping[str, Param]
    others: Mapping[str, Any]
    aliases: frozenset[str] = frozenset()
    passed_over: tuple[str, ...] = ()
    hooked: tuple[str, ...] = ()


class Row(NamedTuple):
    """What is told of a name."""

    name: str
    status: Status
    a: Param | None
    b: Param | None
    candidate: str | None = None
    detail: str = ""
