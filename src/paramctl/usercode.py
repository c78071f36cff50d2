"""Header tier: loading and running the code that a user named, and saying where it failed in their own file."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from paramctl.errors import ParamctlError, nearest, shortened

OWN_NAME = "paramctl_user_"  # and then that of the file
_OWN = str(Path(__file__).parent) + os.sep
_LINE = 60  # characters of a line of code
_INSTALLED = f"{sys.base_prefix}{os.sep}lib"
_NAMED: list[str] = []  # the code that has been run
_BEFORE: list[Callable[[], None]] = []


def has_run() -> bool:
    """Whether any code that a user named was begun in this process."""
    return bool(_NAMED)


def before_any(run: Callable[[], None]) -> None:
    """Call `run` before there is anything of the first code that a user named, in this process."""
    _BEFORE.append(run)


def _begin(what: str) -> None:
    while _BEFORE:
        _BEFORE.pop()()
    _NAMED.append(what)


@contextlib.contextmanager
def running(
    what: str,
    *,
    folder: Path | None = None,
    hint: str | Callable[[], str] = "",
    within: Callable[[], str] = lambda: "",
    error: type[ParamctlError] = ParamctlError,
) -> Iterator[None]:
    """While the user's code runs: what it prints goes to stderr, and what it raises becomes one short error.

    Args:
        what: the code, as the user named it.
        folder: where it finds its neighbours, first in `sys.path` as for `python file.py`; None: the working directory.
        hint: for the error; asked for when there is one.
        within: says more of where it was, behind the line.
        error: its class.

    Raises:
        ParamctlError: names the last line of the user's own code that was reached, and what was raised.
    """
    importable = str((folder or Path()).resolve())
    sys.path.insert(0, importable)
    _begin(what)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ParamctlError:
        raise
    except (Exception, SystemExit) as raised:  # whatever a stranger's code raises
        said = f"{shortened(what)}: {_where(raised)}{within()}{_said(raised)}"
        raise error(said, hint=hint if isinstance(hint, str) else hint()) from raised
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(importable)


def _where(error: BaseException) -> str:
    """The last line of the user's own: its file, number and text."""
    if isinstance(error, SyntaxError) and error.filename:
        return _line(error.filename, error.lineno, error.text)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return _line(frames[-1].filename, frames[-1].lineno, frames[-1].line) if frames else ""


def _line(file: str, number: int | None, text: str | None) -> str:
    said = f"{shortened(Path(file).name)}, line {number}"
    return f"{said}, `{shortened(text.strip(), _LINE)}`: " if text and text.strip() else f"{said}: "


def _is_users(filename: str) -> bool:
    return not filename.startswith((_OWN, "<", _INSTALLED)) and "site-packages" not in filename


def _said(error: BaseException) -> str:
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {shortened(text, 300)}" if text else type(error).__name__


def load(path: Path, *, error: type[ParamctlError] = ParamctlError) -> ModuleType:
    """The module of a Python file, its folder importable while it runs, as `python file.py` would have it.

    Raises:
        ParamctlError: no such file, or its code raised.
    """
    if not path.is_file():
        raise error(f"{shortened(str(path))}: no such file")
    _begin(str(path))
    name = f"{OWN_NAME}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{shortened(str(path))}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    with running(str(path), folder=path.parent, error=error):
        spec.loader.exec_module(module)
    return module


def imported(name: str, *, error: type[ParamctlError] = ParamctlError) -> ModuleType:
    """An installed module, or one beside the working directory.

    Raises:
        ParamctlError: it is not there, or its code raised.
    """
    with running(name, error=error):
        return importlib.import_module(name)


def attribute(module: Any, dotted: str, shown: str, *, error: type[ParamctlError] = ParamctlError) -> Any:
    """`module.a.b`.

    Raises:
        ParamctlError: there is none of that name.
    """
    for step in dotted.split("."):
        if not hasattr(module, step):
            public = [
                name
                for name in dir(module)
                if not name.startswith("_") and not isinstance(inspect.getattr_static(module, name, None), ModuleType)
            ]
            close = nearest(step, public)
            raise error(
                f"{shortened(shown)}: there is no {shortened(step)} in it",
                hint=f"{' or '.join(close)}?" if close else "",
            )
        module = getattr(module, step)
    return module
