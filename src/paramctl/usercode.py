"""Header tier: running the code that a user named, and saying where it failed in their own file."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from paramctl.errors import ParamctlError, nearest, shortened


@contextlib.contextmanager
def running(what: str, *, hint: str = "") -> Iterator[None]:
    """While the user's code runs: what it prints goes to stderr, and what it raises becomes one short error.

    Raises:
        ParamctlError: names the last line of the user's own code that was reached, and what was raised.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except (KeyboardInterrupt, ParamctlError):
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's code raises
            raise ParamctlError(f"{shortened(what)}: {_where(error)}{_said(error)}", hint=hint) from error


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: "
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""


def _is_users(filename: str) -> bool:
    own = str(Path(__file__).parent)
    return not filename.startswith((own, "<", sys.base_prefix + "/lib")) and "site-packages" not in filename


def _said(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {shortened(text, 300)}" if text else type(error).__name__


def load(path: Path) -> ModuleType:
    """The module of a Python file, its folder importable while it runs, as `python file.py` would have it.

    Raises:
        ParamctlError: no such file, or its code raised.
    """
    if not path.is_file():
        raise ParamctlError(f"{shortened(str(path))}: no such file")
    name = f"paramctl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=None)
    if spec is None or spec.loader is None:
        raise ParamctlError(f"{shortened(str(path))}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    with running(str(path)):
        sys.path.insert(0, folder)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
    return module


def imported(name: str) -> ModuleType:
    """An installed module, or one beside the working directory.

    Raises:
        ParamctlError: it is not there, or its code raised.
    """
    here = str(Path.cwd())
    with running(name):
        sys.path.insert(0, here)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(here)


def attribute(module: Any, dotted: str, shown: str) -> Any:
    """`module.a.b`.

    Raises:
        ParamctlError: there is none of that name.
    """
    for step in dotted.split("."):
        if not hasattr(module, step):
            public = [name for name in vars(module) if not name.startswith("_")]
            close = nearest(step, public)
            raise ParamctlError(
                f"{shortened(shown)}: there is no {shortened(step)} in it",
                hint=f"{' or '.join(close)}?" if close else "",
            )
        module = getattr(module, step)
    return module
