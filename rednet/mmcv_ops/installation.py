"""Whether the packages that serve mmcv's operators fit together, and what to do if not."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from rednet.errors import MissingDependencyError

# Packages that install the same modules, under `mmcv`.
MMCV_PACKAGES = ("mmcv", "mmcv-lite", "onedl-mmcv")


def import_torchvision(user: str) -> ModuleType:
    """Imports torchvision, which checks that it fits torch: it registers its operators then.

    Args:
        user: What needs torchvision, the beginning of the message.

    Raises:
        MissingDependencyError: If torchvision is missing or belongs to another release of torch.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise MissingDependencyError(
            f"{user} torchvision, which is not installed: pip install torchvision ({error})"
        ) from error
    except (RuntimeError, AttributeError) as error:
        raise MissingDependencyError(
            f"{user} torchvision, and torchvision {installed_version('torchvision')} does not fit "
            f"torch {torch.__version__} ({error}): install the two releases that belong together, "
            "see https://github.com/pytorch/vision#installation"
        ) from error


def import_operators() -> ModuleType:
    """Imports ``mmcv._ext``, whoever serves it.

    Raises:
        MissingDependencyError: If it cannot be imported.
    """
    return importlib.import_module("mmcv._ext")


def installed_version(package: str) -> str | None:
    """The version of a package by the name that pip knows, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def notes_on_mmcv() -> list[str]:
    """A note if several packages with mmcv's modules are installed.

    They work until one of them is updated or removed.
    """
    found = [name for name in MMCV_PACKAGES if installed_version(name)]
    if len(found) < 2:
        return []
    return [
        f"{' and '.join(found)} are installed over each other's files: "
        f"pip uninstall -y {' '.join(found)}, then install one of them"
    ]
