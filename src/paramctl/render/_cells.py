"""Header tier: how one value looks to a reader, and how wide it is on a screen."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from paramctl.errors import escaped
from paramctl.render._json import compact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from paramctl.render import Screen
    from paramctl.report import Column

RIGHT = frozenset({"count", "bytes", "number", "share", "cosine"})  # units that are aligned to the right
_SGR = {"head": "1", "dim": "2", "type": "36", "shape": "32", "tie": "33", "good": "32", "bad": "31", "other": "35"}
_WORDS = {"shape": "of another shape", "dtype": "of another dtype"}  # of counts among the totals
_SIZES = re.compile(r"\[([\d,]*)\]")
_SAID_IF_ANY = frozenset({"same", "changed", "added", "removed", "shape", "dtype", "max_abs", "rel_l2"})
_MARKS = re.compile(r"[,/_]|\.(?!\d)|(?<!\d)\.")  # behind which a text is broken; no number at its point


def paint(text: str, style: str, screen: Screen) -> str:
    """The text in the colour of a style, where the screen has colours."""
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if screen.color and style and text else text


def cells(text: str) -> int:
    """How many columns of a terminal the text takes; it is escaped already."""
    return len(text) if text.isascii() else sum(map(_cell, text))


def _cell(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def fold(text: str, width: int) -> list[str]:
    """The text on lines of at most `width` columns, broken after a mark where one is near.

    Nothing is dropped. Lines after the first are indented by two, where there is room for that.
    """
    lines: list[str] = []
    start = 0
    while True:
        indent = "  " if lines and width >= 8 else ""
        end = _fitting(text, start, width - len(indent))
        if end == len(text):
            return [*lines, indent + text[start:]]
        half = start + (end - start) // 2
        near = text.rfind(" ", start + (end - start) // 3, end)
        if near < 0:
            near = max((match.start() for match in _MARKS.finditer(text, half, end)), default=-1)
        end = near + 1 if near >= 0 else end
        lines.append((indent + text[start:end]).rstrip())
        start = end


def _fitting(text: str, start: int, width: int) -> int:
    """Where the longest piece ends that starts at `start` and fits; at least one character long."""
    end = min(start + max(width, 1), len(text))
    piece = text[start:end]
    if piece.isascii() and (end == len(text) or text[end].isascii()):
        return end
    total = 0
    for i in range(start, len(text)):
        total += _cell(text[i])
        if total > width and i > start:
            return i
    return len(text)


def escape_all(texts: list[str]) -> list[str]:
    """Each text escaped; in one look where none has anything to escape."""
    joined = "".join(texts)
    return texts if escaped(joined) == joined else [escaped(text) for text in texts]


def name_text(name: str) -> str:
    """A name that can be seen: the empty one as two quotes."""
    return escaped(name) or '""'


def bytes_text(nbytes: int) -> str:
    """`128 B`, `1.0 KiB`, `484.6 MiB`."""
    if abs(nbytes) < 1024:
        return f"{nbytes} B"
    amount = nbytes / 1024
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1023.95:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} PiB"


def shape_text(shape: Sequence[int | str], screen: Screen) -> str:
    """`8×4`; `scalar` for a tensor without dimensions."""
    return ("x" if screen.ascii else "×").join(map(str, shape)) or "scalar"


def bars_text(counts: Sequence[int], screen: Screen) -> str:
    """A bar for each count, as high as its share of the greatest; what is not 0 is seen."""
    bars = " .:-=+*#%" if screen.ascii else " ▁▂▃▄▅▆▇█"
    most = max(counts, default=0)
    text = "".join(bars[-(-count * (len(bars) - 1) // most)] if count else " " for count in counts)
    return text.rstrip() or "-"


def share_text(share: float) -> str:
    """`12.5%`; neither 0% nor 100% where it is not."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share >= 0.9995:
        return ">99.9%"
    return f"{share:.1%}" if share >= 0.0005 else f"{100 * share:.1g}%"


def cosine_text(cosine: float) -> str:
    """Four digits, or as many as tell it from 1."""
    text = f"{cosine:.4g}"
    if text != "1" or cosine == 1:
        return text
    return f"{cosine:.{min(1 - math.floor(math.log10(1 - cosine)), 16)}g}"


_FLOATS: dict[str, Callable[[float], str]] = {"share": share_text, "cosine": cosine_text}


def layout_text(layout: str, screen: Screen) -> str:
    """`float32 [8,4]` as `float32 8×4`."""
    text = _SIZES.sub(lambda match: shape_text(match[1].split(",") if match[1] else (), screen), escaped(layout))
    return text.replace("→", "->") if screen.ascii else text


def bar_texts(values: Sequence[float | None], screen: Screen) -> list[str]:
    """A bar for each value, as long as its share of the greatest; what is not 0 is seen."""
    most = max((value for value in values if value), default=0.0)
    room = min(max(screen.width // 5, 6), 40) if screen.is_terminal else 40
    return [_bar(value / most * room, screen) if value else "" for value in values]


def _bar(length: float, screen: Screen) -> str:
    if screen.ascii:
        return "#" * max(round(length), 1)
    eighths = max(round(length * 8), 1)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def course_text(values: Sequence[float | None], screen: Screen) -> str:
    """A bar for each of a row of numbers that are not negative, from 0 up, or from the least where all are near.

    What is 0 is a dot, what is not known a blank. On a terminal they take a seventh of its columns at most: of numbers
    that share one the greatest is shown.
    """
    bars, zero = (".:-=+*#%", "_") if screen.ascii else ("▁▂▃▄▅▆▇█", "·")
    room = max(screen.width // 7, 6) if screen.is_terminal else len(values)
    if len(values) > room:
        edges = [at * len(values) // room for at in range(room + 1)]
        parts = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
        values = [max(part, default=None) for part in parts]
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    low = 0.0 if low <= high / 2 else low
    text = ""
    for value in values:
        if value is None or not math.isfinite(value):
            text += " " if value is None else "!"
        elif value == 0:
            text += zero
        else:
            share = (value - low) / (high - low or 1.0)
            text += bars[max(math.ceil(share * len(bars)) - 1, 0)]
    return text.rstrip() or "-"


def value_text(value: Any, unit: str, screen: Screen) -> str:
    """A raw value as a reader wants it: `1,024`, `1.0 KiB`, `8×4`, four digits of a float."""
    if value is None or (unit != "shape" and value == []):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if unit == "bytes":
            return bytes_text(value)
        return f"{value:,}" if unit in RIGHT else str(value)
    if isinstance(value, float):
        return _FLOATS.get(unit, "{:.4g}".format)(value)
    if isinstance(value, str):
        if unit == "layout":
            return layout_text(value, screen)
        return name_text(value) if unit == "name" else escaped(value)
    if unit == "shape" and isinstance(value, (list, tuple)):
        return shape_text(value, screen)
    if unit == "course" and isinstance(value, (list, tuple)):
        return course_text(value, screen)
    if unit == "histogram" and isinstance(value, (list, tuple)):
        return bars_text(value, screen)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(map(name_text, value))
    return compact(value)


def column_texts(column: Column, values: Sequence[Any], screen: Screen) -> list[str]:
    """`value_text` of a whole column; what comes again is made once."""
    if column.unit == "bar":
        return bar_texts(values, screen)
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {str} and None not in values and column.unit != "layout":
        texts = escape_all(list(values))
        return [text or '""' for text in texts] if column.unit == "name" else texts
    if kinds in ({str}, {int}, {bool}):  # one kind alone: True and 1 are the same key
        known = {value: value_text(value, column.unit, screen) for value in set(values)}
        return [known[value] for value in values]
    if kinds == {list} and column.unit == "shape":
        keys = [None if value is None else tuple(value) for value in values]
        shapes = {key: value_text(key, "shape", screen) for key in set(keys)}
        return [shapes[key] for key in keys]
    return [value_text(value, column.unit, screen) for value in values]


def batches(rows: Sequence[tuple[Any, ...]], size: int) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The rows, `size` at a time: text is made and given away piece by piece."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def totals_text(totals: Mapping[str, Any], screen: Screen) -> str:
    """Totals in words: `148 tensors · 254,053,376 elements (305,516,544 with ties) · 484.6 MiB`."""
    known = {
        "tensors",
        "numel",
        "unique_numel",
        "nbytes",
        "unique_nbytes",
        "storage_nbytes",
        "dtypes",
        "modules",
        "sum_error",
    }
    words = [_counted(totals["tensors"], "tensors")] if "tensors" in totals else []
    numel, unique = totals.get("numel"), totals.get("unique_numel", totals.get("numel"))
    if unique is not None:
        more = f" ({numel:,} with ties)" if numel is not None and numel != unique else ""
        words.append(_counted(unique, "elements") + more)
    nbytes = totals.get("unique_nbytes", totals.get("nbytes"))
    if nbytes is not None:
        stored = totals.get("storage_nbytes", nbytes)
        words.append(bytes_text(nbytes) + (f" ({bytes_text(stored)} in storages)" if stored > nbytes else ""))
    silent = _SAID_IF_ANY | ({"l2"} if "rel_l2" in totals else set())
    others = {key: value for key, value in totals.items() if key not in known and (value or key not in silent)}
    words += [_other(key, value, screen) for key, value in others.items()]
    if "rows" in totals:
        words.append(f"{totals['rows']['shown']:,} of {_counted(totals['rows']['of'], 'rows')}")
    return (", " if screen.ascii else " · ").join(filter(None, words))


def _other(key: str, value: Any, screen: Screen) -> str:
    """A total that is a command's own: `groups` is `3 groups`, `saved_nbytes` is `1.0 KiB saved`."""
    word = _WORDS.get(key) or escaped(key.removesuffix("nbytes").replace("_", " ").strip())
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    if isinstance(value, int) and key != "max_abs":
        return f"{bytes_text(value)} {word}".rstrip() if key.endswith("nbytes") else _counted(value, word)
    return f"{word} {escaped(value) if isinstance(value, str) else value_text(value, 'number', screen)}"


def _counted(count: int, plural: str) -> str:
    return f"{count:,} {plural.removesuffix('s') if count == 1 else plural}"


def joined_lines(lines: Iterable[str]) -> str:
    """Each line with its end."""
    return "".join(f"{line}\n" for line in lines)
