"""Header tier: the hierarchy of names, with siblings that are alike folded into one."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from paramctl import sharing
from paramctl.checkpoint import Checkpoint, Module, Param
from paramctl.ops.ls import ls
from paramctl.report import Branch, Report
from paramctl.select import Selection

_NUMBERED = re.compile(r"(.*?)(\d{1,18})", re.DOTALL)
_SHOWN_HYPERPARAMETERS = 4
_DEEPEST = 200  # dots in a name; one with more is shown as one step
_MOST_SPELLED_OUT = 8  # names in a label, as {q,k,v,o}_proj


class _Leaf(NamedTuple):
    """A tensor. Two leaves are alike if `alike` is the same number."""

    label: str
    row: int
    alike: int


class _Node:
    """A module, before folding. Two nodes are alike if `alike` is the same number."""

    __slots__ = ("alike", "children", "label", "leaves", "nbytes", "numel", "path", "sharers", "tensors")

    def __init__(self, label: str, path: str) -> None:
        self.label = label
        self.path = path
        self.leaves: list[_Leaf] = []
        self.children: dict[str, _Node] = {}
        self.alike = -1
        self.numel = self.nbytes = self.tensors = 0  # of all below; elements and bytes without those of the sharers
        self.sharers: list[Param] = []  # what is below, and has elements that may be counted twice


_Sibling = TypeVar("_Sibling", _Leaf, _Node)


def tree(checkpoint: Checkpoint, selection: Selection, *, fold: bool = True, depth: int | None = None) -> Report:
    """The rows of `ls`, and the chosen parameters as a tree.

    Args:
        checkpoint: what is shown.
        selection: of it; modules without parameters are shown where everything below their parent is.
        fold: whether siblings that are alike become one: in the names, shapes, dtypes, ties and module types below
            them, and in their own names but for a number, or but for a word of several (`{q,k}_proj`).
        depth: how many levels below the root are shown.
    """
    report = ls(checkpoint, selection)
    grower = _Grower(checkpoint.modules, selection.chosen, fold=fold)
    for path in _shown_modules(checkpoint, selection):
        grower.node(path)
    sharers = sharing.sharers(selection.chosen)
    grower.add(report.rows, sharers)
    grower.number(grower.root)
    totals = report.totals
    top = checkpoint.modules.get("")
    branch = Branch(
        checkpoint.source.name,
        top.type if top else "",
        numel=totals["unique_numel"],
        nbytes=totals["unique_nbytes"],
        tensors=totals["tensors"],
        children=grower.below([grower.root], depth),
    )
    return Report(report.columns, report.rows, totals, report.source, report.format, branch=branch)


def _shown_modules(checkpoint: Checkpoint, selection: Selection) -> list[str]:
    """Modules in their own order: those with something chosen below, and those without parameters beside them."""
    if not selection.rest:
        return [path for path in checkpoint.modules if path]
    chosen = {ancestor for param in selection.chosen for ancestor in _ancestors(param.name)}
    whole = chosen - {ancestor for param in selection.rest for ancestor in _ancestors(param.name)}
    return [path for path in checkpoint.modules if path in chosen or whole.intersection(_ancestors(path))]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))] if len(parts) < _DEEPEST else []


class _Grower:
    def __init__(self, modules: Mapping[str, Module], params: Sequence[Param], *, fold: bool) -> None:
        self.modules = modules
        self.params = params
        self.fold = fold
        self.root = _Node("", "")
        self.nodes: dict[str, _Node] = {}
        self.shapes: dict[Any, int] = {}
        self.tells = any(module.hyperparameters for module in modules.values())

    # ------------------------------------------------------------------ before folding

    def node(self, path: str) -> _Node | None:
        """The node of a path, with those above it; None where it is too deep."""
        found = self.nodes.get(path)
        if found is None and path.count(".") < _DEEPEST:
            parent, dot, label = path.rpartition(".")
            above = self.node(parent) if dot else self.root
            if above is not None:
                found = self.nodes[path] = above.children[label] = _Node(label, path)
        return found

    def add(self, rows: Iterable[tuple[Any, ...]], sharers: Container[str]) -> None:
        """A leaf for each row. Written for speed: there may be ninety thousand."""
        nodes, shapes = self.nodes, self.shapes
        for index, (param, row) in enumerate(zip(self.params, rows, strict=True)):
            name, tie = param.name, row[10]
            parent, dot, label = name.rpartition(".")
            node = (nodes.get(parent) or self.node(parent)) if dot else self.root
            if node is None:
                node, label = self.root, name
            key = (param.shape, row[2], param.kind, param.requires_grad, tie and _relative(tie, name))
            node.leaves.append(_Leaf(label, index, shapes.setdefault(key, len(shapes))))
            node.tensors += 1
            if name in sharers:
                node.sharers.append(param)
            else:
                node.numel += row[3]
                node.nbytes += row[4]

    def number(self, node: _Node) -> None:
        """Give the node and all below it the number of their shape, and sum up; siblings are put in natural order."""
        module = self.modules.get(node.path) if self.modules else None
        key: Any
        if len(node.leaves) == 1 and not node.children:
            label, _, alike = node.leaves[0]
            key = (module and module.type, label, alike)
        else:
            key = (module and module.type, *self.inside(node))
        node.alike = self.shapes.setdefault(key, len(self.shapes))

    def inside(self, node: _Node) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
        """The labels and numbers of what is below."""
        node.leaves = _in_order(node.leaves)
        children = _in_order(list(node.children.values()))
        node.children = {child.label: child for child in children}
        for child in children:
            self.number(child)
            node.numel += child.numel
            node.nbytes += child.nbytes
            node.tensors += child.tensors
            node.sharers += child.sharers
        return tuple([(leaf.label, leaf.alike) for leaf in node.leaves]), tuple([(c.label, c.alike) for c in children])

    # ------------------------------------------------------------------ folding

    def below(self, nodes: Sequence[_Node], depth: int | None) -> tuple[Branch, ...]:
        """What is under some nodes that are alike, of which the first is shown."""
        if depth == 0:
            return ()
        left = None if depth is None else depth - 1
        leaves, children = self.runs(nodes[0])
        return (*map(self.leaf, leaves), *(self.branch(run, self.peers(nodes, run), left) for run in children))

    def leaf(self, run: list[_Leaf]) -> Branch:
        numel, nbytes = _once([self.params[leaf.row] for leaf in run])
        return Branch(_label(run), times=len(run), numel=numel, nbytes=nbytes, tensors=len(run), row=run[0].row)

    def peers(self, nodes: Sequence[_Node], run: list[_Node]) -> list[_Node]:
        """Every node that a run stands for, where it lies under nodes that are folded themselves."""
        if len(nodes) == 1 or not self.tells:
            return run
        return [node.children[child.label] for node in nodes for child in run]

    def runs(self, node: _Node) -> tuple[list[list[_Leaf]], list[list[_Node]]]:
        """Siblings in groups: those that fold are together, every other is alone."""
        if not self.fold:
            return [[leaf] for leaf in node.leaves], [[child] for child in node.children.values()]
        return _consecutive(node.leaves), _spelled(_consecutive(node.children.values()))

    def branch(self, run: list[_Node], peers: list[_Node], depth: int | None) -> Branch:
        """One line: a run, with what is all that is below it: `lm_head.weight`, and down to `layers.[0-31]`."""
        label, times, first, row = _label(run), len(run), run[0], None
        numel, nbytes, tensors = _count(run)
        while depth != 0 and row is None and not (times > 1 and label.endswith("]")):
            leaves, children = self.runs(first)
            if len(leaves) + len(children) != 1:
                break
            only: Sequence[_Leaf | _Node] = (leaves or children)[0]
            if (times > 1 and len(only) > 1) or (self.type(first) and (leaves or len(only) == 1)):
                break
            label, times = f"{label}.{_label(only)}", times * len(only)
            depth = None if depth is None else depth - 1
            if leaves:
                row = leaves[0][0].row
            else:
                first, peers = children[0][0], self.peers(peers, children[0])
        return Branch(
            label,
            "" if row is not None else self.type(first),
            "" if row is not None else self.hyperparameters(peers),
            times,
            numel,
            nbytes,
            tensors,
            row,
            () if row is not None else self.below(peers, depth),
        )

    def type(self, node: _Node) -> str:
        module = self.modules.get(node.path)
        return module.type if module else ""

    def hyperparameters(self, peers: Sequence[_Node]) -> str:
        """Those that all have."""
        if not self.tells:
            return ""
        told = [self.modules[node.path].hyperparameters for node in peers if node.path in self.modules]
        shared = {
            key: value
            for key, value in (told[0] if told else {}).items()
            if _telling(value) and all(other.get(key) == value for other in told[1:])
        }
        pairs = [f"{key}={_plain(value)}" for key, value in shared.items()]
        more = ", …" if len(pairs) > _SHOWN_HYPERPARAMETERS else ""
        return ", ".join(pairs[:_SHOWN_HYPERPARAMETERS]) + more


def _count(run: Iterable[_Node]) -> tuple[int, int, int]:
    """Elements and bytes below, each counted once; and tensors."""
    numel = nbytes = tensors = 0
    sharers: list[Param] = []
    for node in run:
        numel += node.numel
        nbytes += node.nbytes
        tensors += node.tensors
        sharers += node.sharers
    once_numel, once_nbytes = _once(sharers)
    return numel + once_numel, nbytes + once_nbytes, tensors


def _once(params: Iterable[Param]) -> tuple[int, int]:
    storages: dict[str, list[Param]] = {}
    for param in params:
        storages.setdefault(param.storage.key, []).append(param)
    counts = [sharing.unique(sharers) for sharers in storages.values()]
    return sum(numel for numel, _ in counts), sum(nbytes for _, nbytes in counts)


def _relative(tie: str, name: str) -> tuple[int, str]:
    """A tie's other end, seen from the name: so many steps up, and then down. Layers tied alike inside are alike."""
    here, there = name.split("."), tie.split(".")
    common = _common(here, there)
    return len(here) - common, ".".join(there[common:])


# ----------------------------------------------------------------------------- siblings


def _in_order(siblings: list[_Sibling]) -> list[_Sibling]:
    """As they came, but those of one stem by their numbers, in the places that they have."""
    if len(siblings) < 2:
        return siblings
    stems: dict[str, list[tuple[int, int]]] = {}
    for place, sibling in enumerate(siblings):
        match = _NUMBERED.fullmatch(sibling.label) if sibling.label[-1:].isdigit() else None
        if match:
            stems.setdefault(match[1], []).append((int(match[2]), place))
    if not stems:
        return siblings
    ordered = list(siblings)
    for numbered in stems.values():
        for (_, place), to in zip(sorted(numbered), [place for _, place in numbered], strict=True):
            ordered[to] = siblings[place]
    return ordered


def _consecutive(siblings: Iterable[_Sibling]) -> list[list[_Sibling]]:
    groups: list[list[_Sibling]] = []
    before: re.Match[str] | None = None
    for sibling in siblings:
        match = _NUMBERED.fullmatch(sibling.label)
        if groups and match and before and groups[-1][-1].alike == sibling.alike and _follows(before, match):
            groups[-1].append(sibling)
        else:
            groups.append([sibling])
        before = match
    return groups


def _follows(before: re.Match[str], after: re.Match[str]) -> bool:
    a, b = int(before[2]), int(after[2])
    return before[1] == after[1] and a + 1 == b and str(a) == before[2] and str(b) == after[2]


def _spelled(groups: list[list[_Node]]) -> list[list[_Node]]:
    """Neighbours that are alone and alike together, where their names differ in a word: `q_proj` and `k_proj`."""
    joined: list[list[_Node]] = []
    affixes = ("", "")
    for group in groups:
        last, node = joined[-1] if joined else [], group[0]
        is_alike = bool(last) and len(group) == 1 and last[-1].alike == node.alike and node.tensors > 0
        found = _affixes(last[0].label, node.label) if is_alike and len(last) < _MOST_SPELLED_OUT else ("", "")
        if any(found) and (len(last) == 1 or found == affixes):
            last.append(node)
            affixes = found
        else:
            joined.append(list(group))
            affixes = ("", "")
    return joined


def _affixes(a: str, b: str) -> tuple[str, str]:
    """The words that two names begin and end with, each with its underscore: ("", "_proj")."""
    if not (a.isidentifier() and b.isidentifier()):
        return "", ""
    one, other = a.split("_"), b.split("_")
    most = min(len(one), len(other)) - 1
    head = min(_common(one, other), most)
    tail = min(_common(one[::-1], other[::-1]), most - head)
    return "".join(f"{word}_" for word in one[:head]), "".join(f"_{word}" for word in one[len(one) - tail :])


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the first are the same."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _label(run: Sequence[_Leaf | _Node]) -> str:
    if len(run) == 1:
        return run[0].label
    first, second, last = (_NUMBERED.fullmatch(one.label) for one in (run[0], run[1], run[-1]))
    if first and second and last and _follows(first, second):
        return f"{first[1]}[{first[2]}-{last[2]}]"
    prefix, suffix = _affixes(run[0].label, run[1].label)
    words = [one.label[len(prefix) : len(one.label) - len(suffix)] for one in run]
    return f"{prefix}{{{','.join(words)}}}{suffix}"


def _telling(value: Any) -> bool:
    return isinstance(value, (int, float, list, str)) and not isinstance(value, bool) and value not in ([], "", "zeros")


def _plain(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)
