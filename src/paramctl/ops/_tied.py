"""Header tier: whom a change takes along."""

from __future__ import annotations

from collections.abc import Mapping

from paramctl import sharing
from paramctl.checkpoint import Param


def tied_names(params: Mapping[str, Param]) -> dict[str, tuple[str, ...]]:
    """For each name that is tied, the other names that have elements of its, or of the tie's first name.

    Of very many the first alone.
    """
    groups: dict[str, list[str]] = {}
    for name, first in sharing.first_names(params.values()).items():
        groups.setdefault(first, [first]).append(name)
    return {name: along for group in groups.values() for name, along in sharing.others(group)}
