"""Header tier: the options of commands that are about two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl import api
from paramctl.cli import _complete as complete
from paramctl.cli._options import MODEL_HELP, Model, Texts
from paramctl.errors import FileError, ParamctlError, SelectError, shortened
from paramctl.source import default_model, definition, is_model, resolve


@dataclass(frozen=True, slots=True)
class Pair(Model):
    """Two models, and which of their parameters."""

    words: Annotated[
        Texts,
        typer.Argument(
            metavar="A B [PATTERN]...",
            help=f"A and B: each {MODEL_HELP}; A may be left out where there is a default. PATTERN: as for ls, of "
            "the names of either.",
            show_default=False,
            autocompletion=complete.two_models,
        ),
    ] = None

    def both(self, *, seed: int | None) -> tuple[api.Model, api.Model]:
        """The two models, and what is chosen of each."""
        a, b, patterns = self._named()
        if a == b == "-":
            raise ParamctlError("A and B are both standard input", hint="one of them can be -")
        if not is_model(b):
            hint = "diff takes two models, and patterns come after them"
            raise ParamctlError(f"{shortened(b)}: no such file", hint=hint)
        is_code = [definition(name, {}) is not None for name in (a, b)]
        arguments = self.arg or ()
        sources = [
            resolve(name, arguments=arguments if code or not any(is_code) else ())
            for name, code in zip((a, b), is_code, strict=True)
        ]
        first, second = self._rooted([api.open(source, values=seed is not None, seed=seed) for source in sources])
        return self._narrowed(first, patterns), self._narrowed(second, patterns)

    def _named(self) -> tuple[str, str, list[str]]:
        """A, B and the patterns; of one word alone A is the default model."""
        words = list(self.words or [])
        if len(words) >= 2:
            return words[0], words[1], words[2:]
        a = default_model() if words else None
        if a is None:
            raise ParamctlError("diff takes two models", hint="paramctl diff A B")
        return a, words[0], []

    def _rooted(self, models: list[api.Model]) -> list[api.Model]:
        """Each rooted at `--at`, if it has such a path; one of them must."""
        if not self.at:
            return models
        found, errors = [], []
        for model in models:
            try:
                found.append(model.rooted(self.at))
            except FileError as error:
                errors.append(error)
                found.append(model)
        if len(errors) == len(models):
            raise errors[0]
        return found

    def _narrowed(self, model: api.Model, patterns: list[str]) -> api.Model:
        return model.select(
            *patterns,
            *(self.select or ()),
            layer=self.layer or (),
            type=self.type or (),
            dtype=self.dtype or (),
            kind=self.kind or (),
        )


def nbytes(model: api.Model) -> int:
    """Bytes of what is chosen of one of two models."""
    try:
        return model.nbytes
    except SelectError:  # nothing of it is chosen, and something of the other
        return 0
