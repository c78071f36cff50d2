"""Header tier: the command line. One module a command; this one finds it, and shows what went wrong."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from paramctl import usercode
from paramctl.cli._options import expanded, say
from paramctl.errors import Exit, ParamctlError, escaped

_NAMES = "tree ls info show stats ties diff init set convert tie untie check match history grad watch"
COMMANDS: dict[str, str] = {name: f"paramctl.cli.{name}" for name in _NAMES.split()}
_LATER_SECONDS = 0.02
_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, which typer exports under no name of its own

_HELP = """Look into the parameters of neural networks, and change them.

MODEL is a checkpoint (torch, safetensors, GGUF, npz), a folder of one, or the Python definition of a model. Without
one, $PARAMCTL_MODEL is taken, then [tool.paramctl] model of pyproject.toml, then standard input.
"""
_EPILOG = """Exit status: 0 done, 1 the answer is no, 2 it could not be done, 130 interrupted, 141 closed pipe."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - 20 ms that only --version pays

        print(f"paramctl {version('paramctl')}")
        raise typer.Exit


def app(only: str | None = None) -> typer.Typer:
    """The typer application, with one command or with all."""
    made = typer.Typer(
        name="paramctl",
        help=_HELP,
        epilog=_EPILOG,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @made.callback()
    def root(
        version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    ) -> None:
        del version

    for name, module in COMMANDS.items():
        if only is None or only == name:
            command = importlib.import_module(module)
            made.command(name, epilog=command.EXAMPLES)(expanded(command.command))
    return made


def run(argv: Sequence[str]) -> int:
    """Run one command line; what went wrong is shown on stderr in at most three lines.

    Returns:
        The exit status.
    """
    argv = argv or ["--help"]
    only = next((word for word in argv if not word.startswith("-")), None)
    began_somewhere = _is_somewhere()
    try:
        application = app(only if only in COMMANDS else None)
        code = application(args=list(argv), prog_name="paramctl", standalone_mode=False)
        sys.stdout.flush()
        if began_somewhere and not _is_somewhere():
            say("the folder that you are in was replaced as a whole; `cd .` leads to the new one")
    except ParamctlError as error:
        return _fail(str(error))
    except _CLICK_ERROR as error:
        return _fail(f"error: {_decapitalized(escaped(error.format_message()))}\n\nhint: {_help_of(error)}")
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return Exit.CLOSED_PIPE
    except SystemExit as left:  # typer leaves with 1 where a pipe was closed
        if not isinstance(left.__context__, BrokenPipeError):
            raise
        _close_stdout()
        return Exit.CLOSED_PIPE
    except MemoryError:
        return _fail("error: not enough memory")
    except OSError as error:
        _close_stdout()
        where = escaped(str(error.filename or "standard output"))
        return _fail(f"error: {where}: {(error.strerror or str(error)).lower()}")
    return code if isinstance(code, int) else Exit.DONE


def _is_somewhere() -> bool:
    """Whether the working folder is there: one that is replaced in its place is not."""
    try:
        os.getcwd()  # noqa: PTH109 - no path is wanted
    except OSError:
        return False
    return True


def _fail(text: str) -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stdout where it is closed
        sys.stdout.flush()
    print(text, file=sys.stderr)
    return Exit.ERROR


def _decapitalized(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".") if text[1:2].islower() else text.rstrip(".")


def _help_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "paramctl --help"


def _close_stdout() -> None:
    """Let the interpreter's own flush at exit go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """The console script."""
    gc.set_threshold(200_000, 50, 50)  # a checkpoint is made of many small things that stay
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # numpy's threads else begin with 0.1 s of turning on a core
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - closed by `2>&-`
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.unraisablehook = _interrupted_again
    usercode.before_any(gc.freeze)  # what there is by then, torch above all, is not searched for circles at the end
    status: int | None = None  # of a command that came to its end
    atexit.register(lambda: _leave(status))  # first, so that it is called last
    status = run(sys.argv[1:]) if sys.stdout else _fail("error: standard output is closed")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    sys.exit(status)


def _interrupted_again(told: Any) -> None:
    """Ctrl-C where nothing can be raised, as while an object is deleted, comes once more, a little later."""
    if told.exc_type is KeyboardInterrupt:
        words = (threading.main_thread().ident, signal.SIGINT)
        again = threading.Timer(_LATER_SECONDS, signal.pthread_kill, words)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(told)


def _leave(status: int | None) -> None:
    """End the process at once, and leave it to the system to take it down: the interpreter needs up to 0.5 s for it.

    Code that a user named goes the interpreter's own way, on which files are flushed and objects end.
    """
    if status is None or usercode.has_run():
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
