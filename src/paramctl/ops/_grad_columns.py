"""Header tier: the columns of `grad`, which the command line knows before torch is imported."""

from __future__ import annotations

from paramctl.report import Column

COLUMNS = (
    Column("name", "name"),
    Column("use"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("requires_grad"),
    Column("value_l2", "number"),
    Column("grad_l2", "number"),
    Column("ratio", "number"),
    Column("share", "number"),
    Column("zeros", "count"),
    Column("nan", "count"),
    Column("inf", "count"),
    Column("tied_with", "names"),
    Column("mark"),
)
