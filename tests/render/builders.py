"""Reports made by hand."""

from __future__ import annotations

from typing import Any

from paramctl.render import Screen, draw
from paramctl.report import Branch, Column, Report, Unit

UNITS: dict[str, Unit] = {
    "name": "name", "names": "names", "shape": "shape", "stride": "shape", "numel": "count", "nbytes": "bytes",
    "saved_nbytes": "bytes", "storage_offset": "count", "tie": "name", "tied_with": "names", "mean": "number",
    "value": "value", "digest": "digest", "status": "word", "a": "layout", "b": "layout", "max_abs": "number",
    "l2": "number", "rel_l2": "number", "cosine": "cosine", "changed": "share", "bar": "bar", "nonfinite": "count",
}  # fmt: skip
LS = "name shape dtype numel nbytes kind requires_grad stride storage storage_offset tie module file"
SHOW = "name slice class dtype shape requires_grad grad value"
HOSTILE = {
    "newline": "a\nb",
    "tab": "a\tb",
    "escape": "\x1b[31mred\x1b[0m",
    "markup": "[bold]markup[/bold]",
    "bidirectional": "a\u202eb",
    "long": "layer." * 16_666 + "last",
    "surrogate": "a\udc80b",
    "empty": "",
    "wide": "重み.偏り",
    "backslash": "a\\nb",
    "delete": "a\x7fb",
    "nul": "a\0b",
    "bars": "a|b`c*d_",
    "format": "%s {0} %d",
}


def columns(keys: str) -> tuple[Column, ...]:
    return tuple(Column(key, UNITS.get(key, "")) for key in keys.split())


def tensor(name: str, shape: tuple[int, ...] = (8, 4), **more: Any) -> tuple[Any, ...]:
    """A row of `ls`, contiguous and in a storage of its own."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= size
    row = {
        "name": name, "shape": list(shape), "dtype": "float32", "numel": step, "nbytes": 4 * step, "kind": "parameter",
        "requires_grad": True, "stride": stride[::-1], "storage": name, "storage_offset": 0, "tie": None,
        "module": "Linear", "file": "m.pt", **more,
    }  # fmt: skip
    return tuple(row[key] for key in LS.split())


def ls(*rows: tuple[Any, ...], branch: Branch | None = None) -> Report:
    """A report of `ls`; without a branch given, its tree is flat."""
    totals = {"tensors": len(rows), "numel": 96, "unique_numel": 64, "nbytes": 384, "unique_nbytes": 256}
    leaves = tuple(Branch(row[0], row=i, numel=row[3], nbytes=row[4], tensors=1) for i, row in enumerate(rows))
    return Report(columns(LS), rows, totals, "m.pt", "torch zip", branch=branch or Branch("", children=leaves))


def values(value: Any, dtype: str = "float32", **more: Any) -> Report:
    """A report of `show`."""
    row = {
        "name": "w", "slice": None, "class": "Parameter", "dtype": dtype, "shape": [8, 4], "requires_grad": True,
        "grad": None, "value": value, **more,
    }  # fmt: skip
    return Report(columns(SHOW), (tuple(row[key] for key in SHOW.split()),))


def text(report: Report, style: str, **screen: Any) -> str:
    return "".join(draw(report, style, Screen(**screen)))


def terminal(report: Report, style: str, width: int = 80, **screen: Any) -> str:
    return text(report, style, is_terminal=True, width=width, **screen)
