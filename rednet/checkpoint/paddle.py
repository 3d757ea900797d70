"""Reading RedNet's weights in PaddlePaddle's form, without PaddlePaddle.

A ``.pdparams`` file is a pickle of NumPy arrays by name. Nothing else is allowed in it.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rednet.errors import UserError

SUFFIX = ".pdparams"
# What PaddlePaddle calls the statistics of a batch norm.
STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}


def read_paddle_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of weights.

    Args:
        path: The file.

    Returns:
        The weights by PyTorch's names. The weights of linear layers, which PaddlePaddle keeps as
        (inputs, outputs), are transposed.

    Raises:
        UserError: If the file is not a pickle of arrays, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a file of PaddlePaddle's weights: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights by name, but {type(content).__name__}")
    arrays = {name: each for name, each in content.items() if isinstance(each, np.ndarray)}
    return {_renamed(str(name)): _tensor(name, array) for name, array in arrays.items()}


def _renamed(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{STATISTICS[leaf]}" if leaf in STATISTICS else name


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise UserError(f"the entry {name} must hold numbers, got dtype {array.dtype}")
    tensor = torch.from_numpy(np.array(array))
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor


def _latin1(text: str, encoding: str) -> bytes:
    """The part of ``_codecs.encode`` with which pickle's protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_REBUILD: Callable = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 2 renamed the module.
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Finds what rebuilds arrays, and refuses the rest: it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
        return _ALLOWED[module, name]
