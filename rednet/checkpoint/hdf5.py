"""Reading weights from HDF5 files, as the authors of ACNet write them: one array for each name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rednet.errors import MissingDependencyError, UserError

HDF5_SUFFIXES = (".hdf5", ".h5")


def read_hdf5_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of weights.

    Args:
        path: The file.

    Returns:
        The weights by their names, in which ``+`` stands for ``/``.

    Raises:
        MissingDependencyError: If h5py is not installed.
        UserError: If the file is not HDF5, or holds anything else than arrays of numbers.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(f"{path} needs h5py: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            return {name.replace("+", "/"): _tensor(name, file[name]) for name in file}
    except OSError as error:
        raise UserError(f"{path} is not a file of HDF5 that can be read: {error}") from error


def _tensor(name: str, entry: Any) -> Tensor:
    kind = getattr(getattr(entry, "dtype", None), "kind", None)
    if kind is None or kind not in "fiu":
        raise UserError(f"the entry {name} must be an array of numbers, got {entry!r}")
    return torch.from_numpy(np.asarray(entry))
