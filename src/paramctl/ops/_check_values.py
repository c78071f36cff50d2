"""Values tier: whether every value is finite."""

from __future__ import annotations

from collections.abc import Iterable

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.ops._check_findings import Finding
from paramctl.values.scan import Unbounded, may_be_unbounded, scan


def finite(params: Iterable[Param]) -> list[Finding]:
    """NaN and infinity of each tensor; of names of the very same elements, told of the first."""
    found: list[Finding] = []
    alike: dict[object, list[Param]] = {}
    for param in params:
        if may_be_unbounded(param.dtype) and not param.storage.is_meta:
            key = (param.storage.key, param.storage_offset, param.shape, param.stride, param.dtype.name)
            alike.setdefault(key, []).append(param)
    with Window() as window:
        for first, *others in alike.values():
            found += _finite(first, window, [other.name for other in others])
    return found


def _finite(param: Param, window: Window, others: list[str]) -> Iterable[Finding]:
    try:
        return _told(param, scan(param, window), others)
    except FileError as error:
        return [Finding("error", "unreadable", param.name, shortened(error.what, 240))]
    except ParamctlError as error:
        what = error.what.removeprefix(f"{shortened(param.name)}: ")
        return [Finding("note", "unread-values", param.name, f"its values were not read: {shortened(what)}")]


def _told(param: Param, told: Unbounded, others: list[str]) -> Iterable[Finding]:
    also = f"; and {', '.join(shortened(name, 60) for name in others[:3])}, which is tied to it" if others else ""
    for rule, word, count, first in (
        ("nan", "NaN", told.nan, told.first_nan),
        ("inf", "infinite", told.inf, told.first_inf),
    ):
        if count:
            where = "" if not first else f", the first at [{', '.join(map(str, first))}]"
            yield Finding(
                "error",
                rule,
                param.name,
                f"{count:,} of {param.numel:,} values {'is' if count == 1 else 'are'} {word}{where}{also}",
            )
