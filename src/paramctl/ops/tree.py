"""Header tier: the hierarchy of names, with siblings that are alike folded into one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from paramctl.checkpoint import Checkpoint
from paramctl.ops.ls import ls
from paramctl.report import Branch, Report
from paramctl.select import Selection

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)
_SHOWN_HYPERPARAMETERS = 4


@dataclass(slots=True)
class _Node:
    """A path's last step, before folding. `alike` is the number of its shape: two nodes are alike if it is the same."""

    label: str
    path: str
    row: int | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    alike: int = -1


def tree(checkpoint: Checkpoint, selection: Selection, *, fold: bool = True, depth: int | None = None) -> Report:
    """The rows of `ls`, and the chosen parameters as a tree.

    Args:
        checkpoint: what is shown.
        selection: of it; modules without parameters are shown where everything below their parent is.
        fold: whether siblings with consecutive numbers and the same names, shapes, dtypes and module types become one.
        depth: how many levels below the root are shown.
    """
    report = ls(checkpoint, selection)
    root = _Node("", "")
    for path in _shown_modules(checkpoint, selection):
        _add(root, path, None)
    for index, row in enumerate(report.rows):
        _add(root, row[0], index)
    grower = _Grower(checkpoint, report.rows, fold)
    grower.number(root)
    children = grower.grow_all(root, depth)
    totals = report.totals
    top = checkpoint.modules.get("")
    branch = Branch(
        checkpoint.source.name,
        top.type if top else "",
        numel=totals["unique_numel"],
        nbytes=totals["unique_nbytes"],
        tensors=totals["tensors"],
        children=children,
    )
    return Report(report.columns, report.rows, totals, report.source, report.format, branch=branch)


def _add(root: _Node, name: str, row: int | None) -> None:
    node = root
    parts = name.split(".") if name.count(".") < 200 else [name]
    for i, part in enumerate(parts):
        found = node.children.get(part)
        if found is None:
            path = f"{node.path}.{part}" if i else part
            found = node.children[part] = _Node(part, path)
        node = found
    if row is not None:
        node.row = row


def _shown_modules(checkpoint: Checkpoint, selection: Selection) -> list[str]:
    """Modules in their own order: those with something chosen below, and those without parameters beside them."""
    if not selection.rest:
        return [path for path in checkpoint.modules if path]
    chosen = {ancestor for param in selection.chosen for ancestor in _ancestors(param.name)}
    whole = chosen - {ancestor for param in selection.rest for ancestor in _ancestors(param.name)}
    return [path for path in checkpoint.modules if path in chosen or whole.intersection(_ancestors(path))]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))] if len(parts) < 200 else []


class _Grower:
    def __init__(self, checkpoint: Checkpoint, rows: tuple[tuple[Any, ...], ...], fold: bool) -> None:
        self.modules = checkpoint.modules
        self.rows = rows
        self.fold = fold
        self.shapes: dict[Any, int] = {}

    def number(self, node: _Node) -> int:
        """Give the node and all below it the number of their shape; children are put in natural order."""
        if len(node.children) > 1:
            node.children = _in_order(node.children)
        below = tuple((label, self.number(child)) for label, child in node.children.items())
        module = self.modules.get(node.path)
        leaf: Any = None
        if node.row is not None:
            row = self.rows[node.row]  # name shape dtype numel nbytes kind requires_grad stride storage offset tie …
            leaf = (tuple(row[1]), row[2], row[5], row[6], _relative(row[10], row[0]))
        key = (module.type if module else None, leaf, below)
        node.alike = self.shapes.setdefault(key, len(self.shapes))
        return node.alike

    def grow_all(self, node: _Node, depth: int | None) -> tuple[Branch, ...]:
        if depth == 0:
            return ()
        return tuple(self.grow(run, None if depth is None else depth - 1) for run in self.runs(node))

    def runs(self, node: _Node) -> list[list[_Node]]:
        """Siblings in groups: those that fold are together, every other is alone."""
        groups: list[list[_Node]] = []
        for child in node.children.values():
            if self.fold and groups and _follows(groups[-1][-1], child):
                groups[-1].append(child)
            else:
                groups.append([child])
        return groups

    def grow(self, run: list[_Node], depth: int | None) -> Branch:
        first = run[0]
        label, inner = _label(run), first
        path = label
        runs = self.runs(inner)
        if len(run) == 1 and inner.row is None and len(runs) == 1 and len(runs[0]) > 1 and depth != 0:
            run, inner = runs[0], runs[0][0]  # a list of layers and nothing else: one line, `layers.[0-31]`
            path = f"{label}.{_label(run)}"
            depth = None if depth is None else depth - 1
        module = self.modules.get(inner.path)
        numel, nbytes, tensors = map(sum, zip(*(self.count(node) for node in run), strict=True))
        return Branch(
            path,
            module.type if module else "",
            self.hyperparameters([node.path for node in run]),
            len(run),
            numel,
            nbytes,
            tensors,
            inner.row,
            self.grow_all(inner, depth),
        )

    def hyperparameters(self, paths: list[str]) -> str:
        modules = [self.modules[path] for path in paths if path in self.modules]
        if not modules:
            return ""
        shared = {
            key: value
            for key, value in modules[0].hyperparameters.items()
            if _telling(value) and all(m.hyperparameters.get(key) == value for m in modules[1:])
        }
        pairs = [f"{key}={_plain(value)}" for key, value in shared.items()]
        more = ", …" if len(pairs) > _SHOWN_HYPERPARAMETERS else ""
        return ", ".join(pairs[:_SHOWN_HYPERPARAMETERS]) + more

    def count(self, node: _Node) -> tuple[int, int, int]:
        """Elements and bytes below, one that is tied to another below here counted once; and tensors."""
        numel = nbytes = tensors = 0
        prefix = node.path + "."
        stack = [node]
        while stack:
            current = stack.pop()
            stack += current.children.values()
            if current.row is not None:
                row = self.rows[current.row]
                tensors += 1
                if row[10] is None or not row[10].startswith(prefix):
                    numel += row[3]
                    nbytes += row[4]
        return numel, nbytes, tensors


def _relative(tie: str | None, name: str) -> str | None:
    """A tie's other end; within the same parent by its last step, so that layers tied alike inside fold."""
    if tie is None:
        return None
    parent = name.rpartition(".")[0]
    return tie[len(parent) :] if parent and tie.startswith(parent + ".") else tie


def _follows(before: _Node, after: _Node) -> bool:
    if before.alike != after.alike:
        return False
    a, b = _NUMBERED.fullmatch(before.label), _NUMBERED.fullmatch(after.label)
    return bool(a and b and a[1] == b[1] and _number(a[2]) + 1 == _number(b[2]) and str(_number(b[2])) == b[2])


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 19 else -2


def _label(run: list[_Node]) -> str:
    if len(run) == 1:
        return run[0].label
    ends = [match for node in (run[0], run[-1]) if (match := _NUMBERED.fullmatch(node.label))]
    return f"{ends[0][1]}[{ends[0][2]}-{ends[1][2]}]"


def _in_order(children: dict[str, _Node]) -> dict[str, _Node]:
    """Parameters first; then as they came, but siblings of one stem by their numbers, where the first of them stands."""
    stems: dict[str, int] = {}
    keys = []
    for index, label in enumerate(children):
        match = _NUMBERED.fullmatch(label)
        if match:
            place = stems.setdefault(match[1], index)
            keys.append((children[label].row is None, place, _number(match[2]), index, label))
        else:
            keys.append((children[label].row is None, index, 0, index, label))
    return {label: children[label] for *_, label in sorted(keys)}


def _telling(value: Any) -> bool:
    return isinstance(value, (int, float, list, str)) and not isinstance(value, bool) and value not in ([], "", "zeros")


def _plain(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)
