"""Header tier: which columns of a table a terminal has room for, and how wide each is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.checkpoint import is_dense_in_order
from paramctl.render._cells import RIGHT, cells, column_texts
from paramctl.report import Column

if TYPE_CHECKING:
    from paramctl.render import Screen

Chosen = tuple[Column, Sequence[Any]]
GAP = "  "
# What a narrow terminal does without, first to last; a line below the table names them.
_LESS_NEEDED = (
    "storage_offset",
    "storage",
    "stride",
    "file",
    "requires_grad",
    "module",
    "kind",
    "max_at",
    "name_b",
    "cosine",
)
_LESS_NEEDED_THAN_NUMBERS = (
    *("shape", "dtype", "l2", "zeros", "max", "min", "max_abs", "a → b", "a -> b"),
    *("cos_first", "rel_update", "ratio"),
)
_LESS_NEEDED_THAN_CANDIDATES = ("detail", "tensors", "a → b", "a -> b")
_NARROW = 24  # names are not folded further while a count can make room
_NARROWEST = 12
_ABSURD = 6
_MOST_LINES = 6  # of a digest
_WIDEST = 60  # of a name, when room for the others is looked for


class Drawn(NamedTuple):
    """A column as texts. `widths` and `widest` are columns of the screen."""

    column: Column
    texts: list[str]
    widths: list[int]
    widest: int
    is_plain: bool  # as many columns as characters

    @property
    def key(self) -> str:
        return self.column.key

    @property
    def is_right(self) -> bool:
        return self.column.unit in RIGHT

    @property
    def is_foldable(self) -> bool:
        return self.column.unit in {"", "name", "names"}


def drawn(column: Column, values: Sequence[Any], screen: Screen) -> Drawn:
    """The column's texts, measured."""
    texts = column_texts(column, values, screen)
    lengths = list(map(len, texts))
    if "".join(texts).isascii():
        return Drawn(column, texts, lengths, max([*lengths, len(column.key)]), is_plain=True)
    known = {text: cells(text) for text in set(texts)}
    widths = [known[text] for text in texts]
    return Drawn(column, texts, widths, max([*widths, len(column.key)]), is_plain=widths == lengths)


def says_something(column: Column, values: Sequence[Any], shapes: Sequence[Any]) -> bool:
    """Whether a reader learns anything from a column.

    An offset of 0, strides without gaps, a storage for each tensor and one file for all are expected.
    """
    if column.unit == "name" and column.key == "name":
        return bool(values)
    if column.key == "storage_offset":
        return any(values)
    if column.key in ("nan", "inf", "nonfinite"):  # the totals say that there are none
        return any(values)
    if column.key == "file":
        return len(set(values)) > 1
    if column.key == "storage":
        return len(set(values)) < len(values)
    if column.key == "stride" and shapes:
        return any(
            stride and not is_dense_in_order(shape, stride) for shape, stride in zip(shapes, values, strict=True)
        )
    empty: list[Any] = [None] if column.unit == "shape" else [None, [], ""]
    return any(value not in empty for value in values)


def sides_joined(chosen: list[Chosen], screen: Screen) -> list[Chosen]:
    """Two columns that say what a tensor is on either side as one, which says what is the same once."""
    found = {column.key: values for column, values in chosen if column.unit == "layout"}
    if found.keys() != {"a", "b"}:
        return chosen
    joined = [_joined(a, b) for a, b in zip(found["a"], found["b"], strict=True)]
    column = Column("a -> b" if screen.ascii else "a → b", "layout")
    return [(column, joined) if old.key == "a" else (old, values) for old, values in chosen if old.key != "b"]


def _joined(a: str | None, b: str | None) -> str | None:
    """`float32 [8,4] → [4,4]`, `float32 → bfloat16 [8,4]`."""
    if a is None or b is None or a == b:
        return b if a is None else a
    (dtype, _, rest), (other, _, other_rest) = a.partition(" "), b.partition(" ")
    if dtype == other:
        return f"{dtype} {rest} → {other_rest}"
    return f"{dtype} → {other} {rest}" if rest == other_rest else f"{a} → {b}"


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def without(columns: list[Drawn], width: int) -> tuple[list[Drawn], list[str]]:
    """The columns that there is room for, and the keys of the others."""
    hidden: list[str] = []
    if not any(column.key == "name" for column in columns):
        return columns, hidden
    steps = [(_WIDEST, key) for key in _LESS_NEEDED] + [(_NARROW, "numel")]
    if any(column.column.unit == "number" for column in columns):
        steps += [(_NARROW, key) for key in _LESS_NEEDED_THAN_NUMBERS]
    if any(column.key == "candidate" for column in columns):
        steps += [(_NARROW, key) for key in _LESS_NEEDED_THAN_CANDIDATES]
    for most, key in steps:
        if _total([_wanted(column, most) for column in columns]) <= width:
            break
        if any(column.key == key for column in columns[1:]):  # what stands first is what the rows are about
            hidden.append(key)
            columns = [column for column in columns if column.key != key]
    return columns, hidden


def _wanted(column: Drawn, most: int) -> int:
    """The width that a column had better have: text other than names is mostly short."""
    if column.key == "name":
        return min(column.widest, most)
    return min(column.widest, 16) if column.is_foldable else column.widest


def fitted(columns: list[Drawn], width: int) -> list[int]:
    """Widths that fit, if any do: at each step, the column gives way that then folds the fewest rows."""
    widths = [min(column.widest, width) if column.is_foldable else column.widest for column in columns]
    room = width - _total([_wanted(column, _NARROW) for column in columns])
    for i, column in enumerate(columns):
        if column.column.unit == "digest":
            widths[i] = _in_lines(column.widest, room + column.widest)
    spread = {i: sorted(column.widths) for i, column in enumerate(columns) if column.is_foldable}
    for floor in (_NARROWEST, _ABSURD):
        for _ in range(_total(widths) - width):
            wide = [i for i in spread if widths[i] > floor]
            if not wide:
                break
            folds = {i: len(spread[i]) - bisect_right(spread[i], widths[i] - 1) for i in wide}
            _, _, least = min((folds[i], -widths[i], i) for i in wide)
            widths[least] -= 1
    return widths


def _in_lines(characters: int, room: int) -> int:
    """The width of one long word on as few lines as there is room for, all as long, those below indented by two."""
    widths = [-(-(characters + 2 * (lines - 1)) // lines) for lines in range(1, _MOST_LINES + 1)]
    return next((width for width in widths if width <= room), widths[-1])
