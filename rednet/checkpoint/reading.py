"""Reading checkpoints with ``weights_only``, including those that mmengine writes.

Besides tensors and plain containers, mmengine's hold the curves of the training log: its
``HistoryBuffer`` around NumPy arrays, and NumPy scalars that were computed from them. torch >= 2.6
loads with ``weights_only=True`` and refuses those types until they are allowed. Importing this
module allows exactly them. None of them can run code: a ``HistoryBuffer`` is an object with two
arrays, and the NumPy functions rebuild an array or a scalar from bytes. A pickled buffer also calls
``getattr`` for the buffer's methods; the replacement used here returns those methods and nothing
else.

torch 2.4 and 2.5 have the same list but use ``weights_only`` only on request, which
:func:`require_weights_only` makes. Older versions have no such list: there, mmengine unpickles a
checkpoint in full, so open only files that you trust.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from rednet.checkpoint.hdf5 import HDF5_SUFFIXES, read_hdf5_weights
from rednet.checkpoint.paddle import SUFFIX, read_paddle_weights
from rednet.errors import MissingDependencyError, UserError

# int32 is what Windows calls an int in NumPy 1.
_DTYPES = ("float64", "float32", "int64", "int32")
_STATISTICS = ("min", "max", "mean", "current")
# NumPy 2 renamed the module; a file may come from either.
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_SAFETENSORS = r".*\.safetensors$"
# How torch names a type that it refuses.
_REFUSED_TYPE = re.compile(r"GLOBAL ([\w.]+)")


def require_weights_only() -> None:
    """Makes this process read checkpoints with ``weights_only``, if this torch can."""
    if can_name_types():
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def can_name_types() -> bool:
    """Whether this torch can read mmengine's checkpoints with ``weights_only``."""
    return hasattr(torch.serialization, "add_safe_globals")  # torch >= 2.4


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint, and nothing that could run code.

    Args:
        path: A file with a state_dict, at the top level or under ``state_dict``, PaddlePaddle's
            weights in a ``.pdparams`` file, or a ``.safetensors`` file.

    Returns:
        The state_dict.

    Raises:
        UserError: If there is no such file, it needs more than ``weights_only`` or it holds no
            state_dict.
        MissingDependencyError: If its kind needs a package that is not installed.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}")
    content = _READERS.get(Path(path).suffix, _read)(path)
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not any(
        isinstance(value, Tensor) for value in state_dict.values()
    ):
        raise UserError(f"{path} holds no state_dict, neither at the top nor under 'state_dict'")
    unnamed = next((name for name in state_dict if not isinstance(name, str)), None)
    if unnamed is not None:
        raise UserError(f"{path} holds no state_dict: names must be text, got {unnamed!r}")
    return dict(state_dict)


def read_meta(path: str | Path) -> dict[str, Any]:
    """Reads what the checkpoint of a training says about it: epoch, iteration and seed.

    Args:
        path: A checkpoint.

    Raises:
        UserError: If it was not written by a training.
    """
    content = _read(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or not {"epoch", "iter"} <= meta.keys():
        raise UserError(f"{path} holds weights without the state of a training")
    return meta


def _read(path: str | Path) -> Any:
    allow_log_types()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a pickle that is not a checkpoint
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch raises nearly anything for other files
        refused = _REFUSED_TYPE.search(str(error))
        if refused:
            problem = f"holds {refused[1]}, which weights_only does not allow: it could run code"
        else:
            problem = "is not a checkpoint that weights_only can read, or is damaged"
        raise UserError(f"{path} {problem}") from error


@CheckpointLoader.register_scheme(prefixes=_SAFETENSORS)
def _read_safetensors(path: str | Path, map_location: Any = None) -> dict[str, Tensor]:
    """Reads a file of safetensors, for mmengine too: its loader for all names of this form."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path, "cpu" if map_location is None else map_location)
    except Exception as error:  # the package's error is not a subclass of any other
        raise UserError(f"{path} is not a file of safetensors that can be read: {error}") from error


_READERS = {
    SUFFIX: read_paddle_weights,
    ".safetensors": _read_safetensors,
    **dict.fromkeys(HDF5_SUFFIXES, read_hdf5_weights),
}


def _types_in_a_log() -> Iterator[Any]:
    yield HistoryBuffer
    yield _under_the_name("builtins", "getattr", _statistics_method)
    yield np.ndarray
    yield np.dtype
    for name in _DTYPES:
        yield type(np.dtype(name))
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    for module in _NUMPY_MODULES:
        yield _under_the_name(module, "_reconstruct", rebuild_array)
        yield _under_the_name(module, "scalar", rebuild_scalar)


def _statistics_method(owner: Any, name: Any) -> Callable:
    """The part of ``getattr`` that a ``HistoryBuffer`` needs, such as ``HistoryBuffer.mean``."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(f"a checkpoint asks for {name!r} of {owner!r}, which is not allowed")
    return getattr(owner, name)


def _under_the_name(module: str, name: str, function: Callable) -> Callable:
    """The function under the name that checkpoints use for it."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


def allow_log_types() -> None:
    """Allows the types of a training log in this process, where this torch can.

    Called at import, so that mmengine reads its checkpoints, and before each read here: forks of
    mmengine allow the same types while they read and then no more.
    """
    if can_name_types():
        torch.serialization.add_safe_globals(_LOG_TYPES)


_LOG_TYPES = list(_types_in_a_log())
allow_log_types()
