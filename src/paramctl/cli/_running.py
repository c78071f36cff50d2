"""Header tier: what commands that run a model have in common: what is put into it, and what is made of the output."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from paramctl.cli._options import Texts


@dataclass(frozen=True, slots=True)
class Running:
    """What a model is run on."""

    input: Annotated[
        Texts,
        typer.Option(
            "--input",
            metavar="[NAME=]FEED",
            help="2,4: of that shape from N(0, 1); 2,4:0-1: from U(0, 1); int:2,16:0-999: integers, both ends "
            "included; x.npy, x.pt, x.safetensors: a file. Once for each argument of forward; NAME= says which.",
        ),
    ] = None
    target: Annotated[str, typer.Option("--target", metavar="FEED", help="What the output should be, as --input.")] = ""
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="LOSS",
            help="sum, mean, mse, cross_entropy, or file.py:function of the output, or of the output and the target.",
        ),
    ] = ""
    weights: Annotated[
        str, typer.Option("--weights", metavar="CHECKPOINT", help="Values from a file, and not as initialized.")
    ] = ""
    no_strict: Annotated[bool, typer.Option("--no-strict", help="Take of --weights what fits.")] = False
    eval: Annotated[
        bool,
        typer.Option(
            "--eval/--train", help="In the mode of Module.eval, or of Module.train, the default.", show_default=False
        ),
    ] = False
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="For torch.manual_seed, before the model is built.")
    ] = None

    @property
    def options(self) -> dict[str, Any]:
        """As the methods of `api.Model` take them."""
        mode: Literal["train", "eval"] = "eval" if self.eval else "train"
        return {
            "input": self.input or (),
            "target": self.target,
            "loss": self.loss,
            "weights": self.weights,
            "strict": not self.no_strict,
            "mode": mode,
        }

    def seeded(self) -> tuple[int, tuple[str, ...]]:
        """The seed, and what is to be said of it if it was drawn."""
        if self.seed is not None:
            return self.seed, ()
        drawn = secrets.randbits(32)
        return drawn, (f"seed {drawn} was drawn; --seed repeats it",)
