"""Header tier: what stands in brackets after a name, by Python's rules.

slice = item { "," item };  item = int | [int] ":" [int] [ ":" [int] ] | "..."
"""

from __future__ import annotations

import re
from types import EllipsisType

from paramctl.checkpoint import Param
from paramctl.errors import SelectError, caret, shortened

Item = int | slice | EllipsisType


def parse_slice(text: str, bracket: int) -> tuple[Item, ...]:
    """The items between `text[bracket]`, a "[", and the final "]".

    Raises:
        SelectError: an item that is neither an integer nor a slice; points at it.
    """
    items: list[Item] = []
    at = bracket + 1
    inside = text[at:-1]
    if not inside.strip():
        raise SelectError("the slice is empty", pointer=caret(text, at))
    for piece in inside.split(","):
        word = piece.strip()
        column = at + len(piece) - len(piece.lstrip())
        at += len(piece) + 1
        if word == "...":
            items.append(...)
            continue
        parts = [part.strip() for part in word.split(":")]
        if len(parts) > 3 or (len(parts) == 1 and not parts[0]):
            raise SelectError("this is neither an index nor a slice", pointer=caret(text, column))
        for part in parts:
            if part and not re.fullmatch(r"[+-]?\d{1,18}", part):
                raise SelectError("an index is a whole number", pointer=caret(text, column))
        numbers = [int(part) if part else None for part in parts]
        if len(parts) == 3 and numbers[2] == 0:
            raise SelectError("a step cannot be 0", pointer=caret(text, column))
        items.append(slice(*numbers) if len(parts) > 1 else int(parts[0]))
    if items.count(...) > 1:
        raise SelectError("a slice has one ... at most", pointer=caret(text, bracket + 1))
    return tuple(items)


def sliced(param: Param, items: tuple[Item, ...], text: str) -> Param:
    """The view of `param` that Python's indexing would give.

    Raises:
        SelectError: more indices than dimensions, or one out of range.
    """
    where = f"{shortened(param.name)}[{text}]"
    given = len(items) - (... in items)
    if given > len(param.shape):
        raise SelectError(f"{where}: {given} indices, and it has {len(param.shape)} dimensions")
    if ... not in items:
        items = (*items, ...)
    middle = items.index(...)
    filled = (*items[:middle], *[slice(None)] * (len(param.shape) - given), *items[middle + 1 :])
    offset, shape, stride = param.storage_offset, [], []
    for axis, (item, size, by) in enumerate(zip(filled, param.shape, param.stride, strict=True)):
        if isinstance(item, int):
            if not -size <= item < size:
                raise SelectError(f"{where}: {item} is out of range, axis {axis} has {size}")
            offset += (item + size if item < 0 else item) * by
        elif isinstance(item, slice):
            start, stop, step = item.indices(size)
            count = len(range(start, stop, step))
            offset += start * by if count else 0
            shape.append(count)
            stride.append(step * by)
    return param._replace(shape=tuple(shape), stride=tuple(stride), storage_offset=offset)
