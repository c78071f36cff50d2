"""Header tier: SARIF 2.1.0, which code scanning takes: the findings of `check`, a result each.

Rows of another command are results too, of kind `informational`, so that nothing that was asked for is left out.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, sections 3.14, 3.19, 3.27, 3.49.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from paramctl.errors import escaped
from paramctl.render._cells import batches
from paramctl.render._json import compact, encode, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES: dict[str, tuple[str, str]] = {  # each with its level, where nothing else is said
    "sound": ("none", "The checkpoint is whole, safe and finite."),
    "unreadable": ("error", "The file cannot be read as the format demands."),
    "truncated": ("error", "The file is cut short."),
    "lost-tensor": ("error", "A tensor's bytes are not all there."),
    "checksum": ("error", "A member's bytes are not what was written."),
    "no-checksums": ("note", "The archive was written without checksums."),
    "local-header": ("error", "A member's two headers disagree."),
    "duplicate-member": ("error", "A name stands more than once in the archive."),
    "overlap": ("error", "Members of the archive lie upon each other."),
    "unused-bytes": ("warning", "Bytes of the archive belong to no member."),
    "encrypted": ("error", "A member is encrypted."),
    "oversized-storage": ("warning", "A storage is larger than what uses it."),
    "unreferenced-storage": ("note", "No tensor looks at a storage."),
    "index": ("warning", "The index and the shards disagree."),
    "dangerous-call": ("error", "A pickle reaches what can do harm."),
    "foreign-function": ("error", "A pickle calls a function that is not known."),
    "foreign-class": ("warning", "A pickle names a class that is not known."),
    "known-class": ("note", "A pickle names a class that is known to do no harm."),
    "weights-only": ("warning", "torch.load(weights_only=True) refuses the file."),
    "damaged-pickle": ("error", "A pickle cannot be followed to its end."),
    "nan": ("error", "A tensor has values that are NaN."),
    "inf": ("error", "A tensor has values that are infinite."),
    "unread-values": ("note", "A tensor's values cannot be read."),
    "lost-tie": ("warning", "Tensors that the config ties stand there twice."),
}
_LEVELS = ("error", "warning", "note")


def draw(report: Report, screen: Screen) -> Iterator[str]:  # noqa: ARG001 - JSON is the same on every screen
    """One log with one run: the rules that were met, and a result for each row."""
    keys = [column.key for column in report.columns]
    met: list[str] = []
    if "rule" in keys:
        met = list(dict.fromkeys(row[keys.index("rule")] for row in report.rows))
    driver = {
        "name": "paramctl",
        "rules": [_rule(r) for r in met],
    }
    yield f'{{"$schema": {encode(SCHEMA)}, "version": "2.1.0", "runs": [{{"tool": {{"driver": {encode(driver)}}},\n'
    yield '"columnKind": "unicodeCodePoints", "results": ['
    begin = "\n"
    for rows in batches(report.rows, 1024):
        yield begin + ",\n".join(encode(_result(report, dict(zip(keys, row, strict=True)), met)) for row in rows)
        begin = ",\n"
    yield ("\n" if report.rows else "") + f'], "properties": {{"totals": {encode(dict(report.totals))}}}}}]}}\n'


def _rule(rule: str) -> dict[str, Any]:
    level, text = RULES.get(rule, ("warning", rule))
    return {"id": rule, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}


def _result(report: Report, row: dict[str, Any], met: list[str]) -> dict[str, Any]:
    file, name = row.get("file") or report.source, row.get("name")
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(str(file))}}}
    if isinstance(name, str) and name:
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "member"}]
    if "rule" not in row:
        said = escaped(compact(plain(row)))
        return {"kind": "informational", "level": "none", "message": {"text": said}, "locations": [location]}
    rule, level = str(row["rule"]), str(row.get("level"))
    text = str(row.get("detail") or rule)
    said = f"{escaped(str(name))}: {text}" if name else text
    return {
        "ruleId": rule,
        "ruleIndex": met.index(rule),
        **({"level": level} if level in _LEVELS else {"kind": "pass", "level": "none"}),
        "message": {"text": said},
        "locations": [location],
    }


def _uri(file: str) -> str:
    """A relative reference, or a file URI. Source: RFC 8089; section 3.4.3."""
    said = quote(file, safe="/~", errors="surrogateescape") or "-"
    return f"file://{said}" if said.startswith("/") else said
