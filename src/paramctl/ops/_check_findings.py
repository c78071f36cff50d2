"""Header tier: a finding, and what may be found."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("ok", "error", "warning", "note")  # as they are sorted

RULES = (
    "sound",
    # whole
    "unreadable", "truncated", "lost-tensor", "checksum", "no-checksums", "local-header", "duplicate-member",
    "overlap", "unused-bytes", "encrypted", "oversized-storage", "unreferenced-storage",
    "index",
    # safe
    "dangerous-call", "foreign-function", "foreign-class", "known-class", "weights-only", "damaged-pickle",
    # finite
    "nan", "inf", "unread-values",
    # tied
    "lost-tie",
)  # fmt: skip


class Finding(NamedTuple):
    """One thing that is so of a file; `name` is a tensor, an archive's member, or a global."""

    level: Level
    rule: str
    name: str
    detail: str
    file: str = ""  # where it is not the file that was named
