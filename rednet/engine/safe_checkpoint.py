"""Checkpoints that mmengine wrote, read with ``weights_only``.

Besides tensors and plain containers, such a file holds the curves of the training log: mmengine's
``HistoryBuffer`` around NumPy arrays, and NumPy scalars that were computed from them. torch >= 2.6
loads with ``weights_only=True`` and refuses those types until they are named. Importing this module
names exactly them. None of them can run code: a ``HistoryBuffer`` is an object with two arrays, and
the NumPy functions rebuild an array or a scalar from bytes. A buffer's file also asks ``getattr``
for the buffer's own methods; what answers here gives those methods and nothing else.

torch 2.4 and 2.5 know the same list, but read with ``weights_only`` only when told to:
:func:`require_weights_only` tells them. Older versions cannot be given such a list. There mmengine
unpickles a checkpoint in full: open only files that you trust.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# int32 is what Windows calls an int in NumPy 1.
_DTYPES = ("float64", "float32", "int64", "int32")
_STATISTICS = ("min", "max", "mean", "current")
# NumPy 2 renamed the module; a file may come from either.
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def require_weights_only() -> None:
    """Makes this process read checkpoints with ``weights_only``, where this torch can."""
    if _can_name_types():
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def _can_name_types() -> bool:
    return hasattr(torch.serialization, "add_safe_globals")  # torch >= 2.4


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
    """All of ``getattr`` that a ``HistoryBuffer`` needs: ``HistoryBuffer.mean`` and its like."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(f"a checkpoint asks for {name!r} of {owner!r}, which is not allowed")
    return getattr(owner, name)


def _under_the_name(module: str, name: str, function: Callable) -> Callable:
    """The function, under the name by which a checkpoint calls it."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


if _can_name_types():
    torch.serialization.add_safe_globals(list(_types_in_a_log()))
