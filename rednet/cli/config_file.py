"""Reading config files, whatever is in them."""

from __future__ import annotations

import os
import re
import traceback
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from rednet.cli.failures import SetupError, reason_of

# What mmengine says where a base, such as mmseg::..., belongs to a package that is missing.
_MISSING_PACKAGE = re.compile(r"(\S+) is not installed, please install")


def read_file(path: str) -> Config:
    """Reads a config file. What a file raises, an exit included, is told with the file's name."""
    _find_bases_of_forks()
    try:
        return Config.fromfile(path)
    except (Exception, SystemExit) as error:
        raise SetupError(f"config {_position(path, error)}: {_reading_reason(error)}") from error


def _find_bases_of_forks() -> None:
    """Lets mmengine find a base such as ``mmseg::...`` in a fork of the package.

    mmengine looks for mmsegmentation, as the package of mmseg is named. The fork of it has another
    name, and so only the module can be found.
    """
    for module, package in MODULE2PACKAGE.items():
        if module != package and find_spec(module) and not any(distributions(name=package)):
            MODULE2PACKAGE[module] = module


def _position(path: str, error: BaseException) -> str:
    """The file, of the config and its bases, that was being read, and the line if one is known."""
    frames = list(traceback.walk_tb(error.__traceback__))
    named = [frame.f_locals["filename"] for frame, _ in frames if _reads_a_file(frame)]
    file = next((name for name in reversed(named) if Path(name).is_file()), path)
    file = os.path.relpath(file) if Path.cwd() in Path(file).absolute().parents else file
    lines = [line for frame, line in frames if frame.f_code.co_name == "<module>"]
    line = error.lineno if isinstance(error, SyntaxError) else next(iter(lines), None)
    return f"{file}, line {line}" if line else str(file)


def _reads_a_file(frame: FrameType) -> bool:
    return frame.f_code.co_name in ("fromfile", "_file2dict", "_parse_lazy_import")


def _reading_reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    missing = _MISSING_PACKAGE.match(str(error))
    if missing:
        return f"{missing[1]} is not installed: pip install {missing[1]}"
    if isinstance(error, RecursionError):
        return "a config is among its own _base_ files"
    return reason_of(error).partition(", the current sys.path is")[0]
