"""Header tier: the hierarchy, a node a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import ParamctlError, escaped
from paramctl.render._cells import (
    bytes_text,
    cells,
    fold,
    joined_lines,
    name_text,
    paint,
    shape_text,
    totals_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Branch, Report

_GUIDES = ("├── ", "└── ", "│   ", "    ")
_ASCII_GUIDES = ("|-- ", "`-- ", "|   ", "    ")
_BELOW = {"├── ": "│   ", "└── ": "    ", "|-- ": "|   ", "`-- ": "    "}  # what goes on under a guide
_LINES = 2048  # in a chunk
_ALIGN = 40  # what stands behind longer labels is not aligned


class _Word(NamedTuple):
    """A piece of a line. `need` is 0 for what must be said; of the rest, the greatest goes first."""

    text: str
    style: str = ""
    need: int = 0
    glue: str = "  "  # what parts it from the piece before


class _Tail:
    """What is said behind a label; shared by the nodes of which the same is said."""

    __slots__ = ("text", "width", "words")

    def __init__(self, words: list[_Word], screen: Screen) -> None:
        self.words = words
        self.text = "".join(word.glue + paint(word.text, word.style, screen) for word in words)
        self.width = sum(cells(word.text) + len(word.glue) for word in words)


class _Line(NamedTuple):
    guide: str
    label: str
    width: int  # of guide and label
    tail: _Tail


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """Modules with their types and counts, tensors with their shapes, ties marked with `=`.

    Raises:
        ParamctlError: the report has no tree.
    """
    if report.branch is None:
        raise ParamctlError("tree is for tree and ls", hint="choose table, tsv or json with --format")
    return _tree(report, report.branch, screen)


def _tree(report: Report, root: Branch, screen: Screen) -> Iterator[str]:
    yield _text(_root(report, root, screen), 0, screen, style="head") + "\n"
    lines = list(_lines(report, root, screen))
    align = max((line.width for line in lines if line.width <= _ALIGN), default=0)
    for start in range(0, len(lines), _LINES):
        yield joined_lines(_text(line, align, screen) for line in lines[start : start + _LINES])


def _root(report: Report, root: Branch, screen: Screen) -> _Line:
    name = escaped(report.source) or escaped(root.label) or "."
    words = _type(root) if root.type else []
    words.append(_Word(totals_text(report.totals, screen), "dim"))
    return _Line("", name, cells(name), _Tail([word for word in words if word.text], screen))


def _lines(report: Report, root: Branch, screen: Screen) -> Iterator[_Line]:
    """Every node below the root, depth first; without recursion, for a name may have a thousand dots."""
    middle, last, bar, blank = _ASCII_GUIDES if screen.ascii else _GUIDES
    leaves = _Leaves(report, screen)
    labels: dict[tuple[str, int], tuple[str, int]] = {}
    stack = [(root, "", True)]  # what stands before the guide, and whether it is the last of its parent
    while stack:
        node, prefix, is_last = stack.pop()
        if node is not root:
            guide = prefix + (last if is_last else middle)
            label = (node.label, node.times)
            if label not in labels:
                text = name_text(node.label) + _times(node, screen)
                labels[label] = (text, cells(text))
            text, width = labels[label]
            tail = leaves.tail(node.row) if node.row is not None else _Tail(_branch(node), screen)
            yield _Line(guide, text, len(guide) + width, tail)
            prefix += blank if is_last else bar
        if node.children:
            stack.append((node.children[-1], prefix, True))
            stack += [(child, prefix, False) for child in node.children[-2::-1]]


def _times(node: Branch, screen: Screen) -> str:
    return "" if node.times == 1 else f" x{node.times}" if screen.ascii else f" ×{node.times}"


def _type(node: Branch) -> list[_Word]:
    words = [_Word(escaped(node.type), "type")]
    if node.hyperparameters:
        words.append(_Word(f"({escaped(node.hyperparameters)})", "dim", 3, ""))
    return words


def _branch(node: Branch) -> list[_Word]:
    words = _type(node) if node.type else []
    if node.tensors:
        words += [_Word(f"{node.numel:,}", "dim", 1), _Word(bytes_text(node.nbytes), "dim", 2)]
    return words


class _Leaves:
    """What is said of the rows of a report; made once for the rows that are alike."""

    def __init__(self, report: Report, screen: Screen) -> None:
        keys = {column.key: i for i, column in enumerate(report.columns)}
        self._places = [keys.get(key) for key in ("shape", "dtype", "kind", "tie")]
        self._rows = report.rows
        self._screen = screen
        self._known: dict[tuple[Any, ...], _Tail] = {}

    def tail(self, row: int) -> _Tail:
        values = self._rows[row]
        fields: list[Any] = [None if place is None else values[place] for place in self._places]
        shape, dtype, kind, tie = fields
        key = (None if shape is None else tuple(shape), dtype, kind, tie)
        if key not in self._known:
            self._known[key] = _Tail(self._words(shape, dtype, kind, tie), self._screen)
        return self._known[key]

    def _words(self, shape: list[int] | None, dtype: str, kind: str, tie: str | None) -> list[_Word]:
        words = [] if shape is None else [_Word(shape_text(shape, self._screen), "shape")]
        if dtype:
            words.append(_Word(escaped(dtype)))
        if kind == "buffer":
            words.append(_Word("buffer", "dim"))
        if tie is not None:
            words.append(_Word(f"= {name_text(tie)}", "tie"))
        return words


def _text(line: _Line, align: int, screen: Screen, *, style: str = "") -> str:
    tail, gap = line.tail, max(align - line.width, 0)
    if screen.is_terminal and line.width + gap + tail.width > screen.width:
        tail, gap = _fitted(line, gap, screen)
        if line.width + tail.width > screen.width:
            return _folded(line, screen, style)
    head = paint(line.guide, "dim", screen) + paint(line.label, style, screen)
    return head + " " * gap + tail.text if tail.words else head


def _fitted(line: _Line, gap: int, screen: Screen) -> tuple[_Tail, int]:
    """What a narrow screen has room for: hyperparameters go first, then bytes, then counts."""
    kept = [_Tail([w for w in line.tail.words if w.need <= most], screen) for most in (2, 1, 0)]
    room = screen.width - line.width
    if kept[0].width + gap <= room:
        return kept[0], gap
    tail = next((tail for tail in kept if tail.width <= room), kept[-1])
    return tail, max(min(gap, room - tail.width), 0)


def _folded(line: _Line, screen: Screen, style: str) -> str:
    """A line that is too long, on several: nothing that must be said is dropped."""
    below = line.guide[:-4] + _BELOW.get(line.guide[-4:], "") + "    "
    room = max(screen.width - len(below), 8)
    heads = fold(line.label, room)
    lines = [paint(line.guide, "dim", screen) + paint(heads[0], style, screen)]
    lines += [paint(below, "dim", screen) + paint(head, style, screen) for head in heads[1:]]
    used = (len(below) if len(heads) > 1 else len(line.guide)) + cells(heads[-1])
    for word in line.tail.words:
        if word.need:
            continue
        if used + len(word.glue) + cells(word.text) <= screen.width:
            lines[-1] += word.glue + paint(word.text, word.style, screen)
            used += len(word.glue) + cells(word.text)
            continue
        pieces = fold(word.text, room)
        lines += [paint(below, "dim", screen) + paint(piece, word.style, screen) for piece in pieces]
        used = len(below) + cells(pieces[-1])
    return "\n".join(lines)
