"""Header tier: what is said when something cannot be done, and how strangers' text is made safe to show."""

from __future__ import annotations

import re
from enum import IntEnum


class Exit(IntEnum):
    """How a command ends."""

    DONE = 0
    NO = 1  # the answer is no: it differs, it does not fit, a fault was found
    ERROR = 2  # it could not be done
    INTERRUPTED = 130
    CLOSED_PIPE = 141


_NAMED_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
# C0 and C1 controls, soft hyphen, zero-width and bidirectional marks, separators that break a line,
# variation and tag characters, byte order marks, and lone surrogates.
_UNSAFE = re.compile(
    "[\\\\\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPED = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))")


def _escape_one(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if character in _NAMED_ESCAPES:
        return _NAMED_ESCAPES[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped(text: str) -> str:
    """The text on one line, with every control, escape, bidirectional and invisible character spelled out.

    A backslash is doubled, so that no two texts look alike and `unescaped` gives the text back.
    """
    return text if text.isascii() and text.isprintable() and "\\" not in text else _UNSAFE.sub(_escape_one, text)


def unescaped(text: str) -> str:
    """The text that `escaped` was given."""
    named = {escape[1]: character for character, escape in _NAMED_ESCAPES.items()}
    return _ESCAPED.sub(
        lambda m: named[m.group(1)] if m.group(1) else chr(int(m.group(2) or m.group(3) or m.group(4), 16)), text
    )


def shortened(text: str, width: int = 120) -> str:
    """Escaped, and cut in the middle to `width` characters: for a name inside an error message."""
    text = escaped(text if len(text) <= 4 * width else text[: 2 * width] + text[-2 * width :])
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


class ParamctlError(Exception):
    """A command that could not be done: what, where, and what would work.

    Shown as `error: WHAT`, a blank line, `hint: HINT`; or, for malformed text, as `error: WHAT` and the two lines
    of a `caret`. Three lines at most.
    """

    def __init__(self, what: str, *, hint: str = "", pointer: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.pointer = pointer

    def __str__(self) -> str:
        if self.pointer:
            return f"error: {self.what}\n{self.pointer}"
        return f"error: {self.what}" + (f"\n\nhint: {self.hint}" if self.hint else "")


class FileError(ParamctlError):
    """A file that cannot be read or written as asked."""

    def __init__(self, file: object, what: str, *, hint: str = "") -> None:
        super().__init__(f"{shortened(str(file), 240)}: {what}", hint=hint)
        self.file = file


class SelectError(ParamctlError):
    """A selection that is malformed, or that chooses nothing."""


class InitError(ParamctlError):
    """An initializer that is unknown, malformed, or that cannot work on a tensor."""


class MissingLibraryError(ParamctlError):
    """A library of a higher tier that is not installed."""


def nearest(word: str, words: list[str], *, most: int = 3) -> list[str]:
    """The names most like `word`, best first: for a hint."""
    import difflib  # noqa: PLC0415 - 5 ms that only an error pays

    if len(word) > 500 or not words:
        return []
    pool = [name for name in words if len(name) < 500][:20_000]
    tails = [name for name in pool if name.endswith("." + word)]
    return (tails + [n for n in difflib.get_close_matches(word, pool, most, 0.5) if n not in tails])[:most]


def caret(text: str, column: int) -> str:
    """The text with a caret under `column` (from 0), cut to a screen's width around it: two lines of an error."""
    start = max(0, column - 50)
    piece = text[start : start + 76]
    safe = escaped(piece[: column - start])
    return f"{safe}{escaped(piece[column - start :])}\n{' ' * len(safe)}^"
