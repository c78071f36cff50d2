"""Header tier: the options that commands share, each group written once.

A command's function takes the groups as arguments; `expanded` gives typer one parameter for each field.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from paramctl import api, render
from paramctl.cli import _complete as complete
from paramctl.errors import ParamctlError, shortened
from paramctl.report import Column, Report
from paramctl.source import NO_MODEL_HINT, default_model, is_model, resolve

Texts = list[str] | None
_Word = TypeVar("_Word", bound=str)


At = Annotated[str, typer.Option("--at", metavar="PATH", help="Root the view there, in a nested checkpoint.")]
Arg = Annotated[Texts, typer.Option("--arg", metavar="NAME=VALUE", help="An argument for a definition's callable.")]
By = Annotated[str, typer.Option("--by", metavar="WHAT", help="A row for each tensor, or for each module.")]
Depth = Annotated[int | None, typer.Option("--depth", min=0, metavar="N", help="A row for each branch, N levels deep.")]
MODEL_HELP = "a file, a definition (net.py, net.py:build, package.module:name), or - for standard input"


class Words:
    """What the positional words mean: a MODEL, and what comes after it."""

    __slots__ = ()
    words: Texts
    at: str
    arg: Texts

    def split(self, *, is_word: Callable[[str], bool] = lambda _: False) -> tuple[str | None, list[str]]:
        """MODEL and the words after it. The first word is no MODEL if `is_word` says so, or if a default is set."""
        words = list(self.words or [])
        if not words:
            return None, []
        first = words[0]
        if is_model(first) and not (is_word(first) and not os.path.lexists(first)):
            return first, words[1:]
        configured = default_model()
        if configured is not None:
            return configured, words
        if is_word(first):
            raise ParamctlError("no MODEL was given", hint=NO_MODEL_HINT)
        return first, words[1:]

    def read(self, model: str | None, *, values: bool = False, seed: int | None = None) -> api.Model:
        """The model that `model` names, rooted at `--at`."""
        return api.open(resolve(model, arguments=self.arg or ()), at=self.at, values=values, seed=seed)


@dataclass(frozen=True, slots=True)
class Model(Words):
    """A model, and which of its parameters."""

    words: Annotated[
        Texts,
        typer.Argument(
            metavar="[MODEL] [PATTERN]...",
            help=f"MODEL: {MODEL_HELP}. PATTERN: a name, a module, a wildcard, re:…, !…, or [0][1]; "
            "a [slice] may follow.",
            show_default=False,
            autocompletion=complete.words,
        ),
    ] = None
    select: Annotated[Texts, typer.Option("--select", "-s", metavar="PATTERN", help="As PATTERN.")] = None
    layer: Annotated[Texts, typer.Option("--layer", "-l", metavar="PATH", help="Only of that module.")] = None
    type: Annotated[Texts, typer.Option("--type", "-t", metavar="TYPE", help="Only of modules of that type.")] = None
    dtype: Annotated[Texts, typer.Option("--dtype", metavar="DTYPE", help="Only of that dtype.")] = None
    kind: Annotated[Texts, typer.Option("--kind", metavar="KIND", help="Only parameter, buffer or tensor.")] = None
    at: At = ""
    arg: Arg = None

    def open(self, *, values: bool = False, seed: int | None = None) -> api.Model:
        """The model, and what is chosen of it."""
        name, patterns = self.split()
        return self.read(name, values=values, seed=seed).select(
            *patterns,
            *(self.select or ()),
            layer=self.layer or (),
            type=self.type or (),
            dtype=self.dtype or (),
            kind=self.kind or (),
        )


@dataclass(frozen=True, slots=True)
class Output:
    """How a report is printed."""

    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="tree, table, tsv, json, jsonl, markdown, names or sarif. "
            "Without it a terminal gets a table or a tree, and a pipe TSV or the plain tree.",
            show_default=False,
        ),
    ] = ""
    no_header: Annotated[bool, typer.Option("--no-header", help="Leave out the line of column keys.")] = False
    null: Annotated[bool, typer.Option("--null", "-0", help="End names with NUL, for xargs -0.")] = False
    color: Annotated[
        str, typer.Option("--color", metavar="WHEN", help="auto, always or never.", show_default=False)
    ] = "auto"

    def check(self) -> None:
        """Refuse what cannot be printed before anything is read."""
        if self.format and self.format not in render.RENDERERS:
            raise ParamctlError(f"--format {shortened(self.format)}: no such format", hint=", ".join(render.RENDERERS))
        if self.color not in ("auto", "always", "never"):
            raise ParamctlError(f"--color {shortened(self.color)}: not auto, always or never")

    @property
    def is_table(self) -> bool:
        """Whether people will read it: a table, on a terminal or asked for."""
        return self.format == "table" or (not self.format and sys.stdout.isatty())

    @property
    def is_names(self) -> bool:
        """Whether names alone are printed."""
        return self.format == "names" or (not self.format and self.null)

    def show(self, report: Report, *, default: str = "", full: bool = False) -> None:
        """Print a report to stdout, and its notes to stderr."""
        self.check()
        terminal = sys.stdout.isatty()
        style = self.format or ("names" if self.null else default or ("table" if terminal else "tsv"))
        self.print(report, style, self.screen(full=full))

    def screen(self, *, full: bool = False) -> render.Screen:
        """What stdout is."""
        return _screen(self, terminal=sys.stdout.isatty(), full=full)

    def print(self, report: Report, style: str, screen: render.Screen) -> None:
        """Print through the renderer `style`."""
        errors = "surrogateescape" if screen.nul and style == "names" else "backslashreplace"
        sys.stdout.reconfigure(errors=errors)  # type: ignore[union-attr]
        write = sys.stdout.write
        for chunk in render.draw(report, style, screen):
            write(chunk)
        sys.stdout.flush()
        for note in report.notes:
            say(note)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a report are printed, in what order, and under which columns."""

    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Only rows of which it is true: 'numel > 1M and dtype != float32', 'name ~ attn or tie is not null'.",
        ),
    ] = None
    sort: Annotated[
        Texts,
        typer.Option(
            "--sort",
            metavar="COLUMNS",
            help="By these, -COLUMN descending: -nbytes,name.",
            autocompletion=complete.columns,
        ),
    ] = None
    head: Annotated[int | None, typer.Option("--head", metavar="N", min=0, help="Only the first N rows.")] = None
    columns: Annotated[
        Texts,
        typer.Option(
            "--columns",
            metavar="COLUMNS",
            help="Only these, in this order: name,nbytes.",
            autocompletion=complete.columns,
        ),
    ] = None

    @property
    def is_given(self) -> bool:
        """Whether any is."""
        return self.where is not None or bool(self.sort) or self.head is not None or bool(self.columns)

    @property
    def needed(self) -> frozenset[str]:
        """The columns that are named; words of the condition that may be text are among them."""
        if not self.is_given:
            return frozenset()
        from paramctl import rows  # noqa: PLC0415 - 4 ms that only these options pay

        named = {key.removeprefix("-") for key in rows.keys([*(self.sort or ()), *(self.columns or ())])}
        return rows.columns(rows.parse_where(self.where)) | named if self.where is not None else frozenset(named)

    def adding(self, usual: Sequence[Column]) -> Rows:
        """With --columns adding to the usual ones, where it names none of them."""
        if not self.columns:
            return self
        from paramctl import rows  # noqa: PLC0415 - 4 ms that only these options pay

        is_picking = not {column.key for column in usual}.isdisjoint(rows.keys(self.columns))
        return self if is_picking else replace(self, columns=None)

    def check(self, columns: Sequence[Column]) -> None:
        """Refuse, before anything is read, what is malformed or not of these columns."""
        self.arranged(Report(tuple(columns), ()))

    def arranged(self, report: Report, *, names: bool = False) -> Report:
        """The report as asked for; where `names` alone are printed, with every column."""
        if not self.is_given:
            return report
        from paramctl import rows  # noqa: PLC0415 - 4 ms that only these options pay

        where = None if self.where is None else rows.parse_where(self.where)
        made = rows.arranged(report, where, sort=self.sort or (), head=self.head)
        picked = rows.arranged(made, columns=self.columns or ())
        return made if names else picked


def _screen(output: Output, *, terminal: bool, full: bool) -> render.Screen:
    color = output.color == "always" or (
        output.color == "auto" and terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    return render.Screen(
        is_terminal=terminal,
        color=color,
        width=_width() if terminal else 0,
        header=not output.no_header,
        nul=output.null,
        full=full,
        ascii=not (sys.stdout.encoding or "").lower().startswith("utf"),
    )


def _width() -> int:
    said = os.environ.get("COLUMNS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def one_of(option: str, word: str, choices: tuple[_Word, _Word]) -> _Word:
    """The choice that a word is.

    Raises:
        ParamctlError: it is neither.
    """
    for choice in choices:
        if word == choice:
            return choice
    raise ParamctlError(f"{option} {shortened(word)}: neither {choices[0]} nor {choices[1]}")


def say(text: str) -> None:
    """A word to the person, on stderr."""
    print(text, file=sys.stderr)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the fields of its option groups as parameters of its own, for typer to read."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        group = hints[name]
        if not is_dataclass(group):
            parameters.append(parameter.replace(annotation=group, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        inner = get_type_hints(group, include_extras=True)
        groups[name] = (group, [field.name for field in fields(group)])
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=inner[f.name])
            for f in fields(group)
        ]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        made = {name: group(**{key: given.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        function(**made, **given)

    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
