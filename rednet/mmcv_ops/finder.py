"""The finders of ``mmcv._ext``: one offers it where nothing else does, one explains failures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch

from rednet.errors import MissingDependencyError

EXTENSION = "mmcv._ext"


class _ExtensionLoader(Loader):
    """Fills the module with the operators of :mod:`rednet.mmcv_ops.operators`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # Python's own way to make a module

    def exec_module(self, module: ModuleType) -> None:
        from rednet.mmcv_ops.operators import OPERATORS, unsupported

        vars(module).update(OPERATORS, __getattr__=unsupported)


class _ExtensionFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        return ModuleSpec(fullname, _ExtensionLoader(), origin="rednet.mmcv_ops")


class _CompiledLoader(Loader):
    """Loads compiled operators, and says what to do if they do not load."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        try:
            return self._loader.create_module(spec)
        except ImportError as error:  # compiled for another torch, say
            raise MissingDependencyError(
                f"mmcv's compiled operators do not load ({error}): build mmcv for torch "
                f"{torch.__version__} again, or let torchvision serve: "
                "pip uninstall -y mmcv && pip install mmcv-lite==2.1.0"
            ) from None

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)


class _CompiledFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CompiledLoader(spec.loader)
        return spec


def register_finders() -> None:
    """Adds the finders to ``sys.meta_path`` unless they are there."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CompiledFinder())
        sys.meta_path.append(_ExtensionFinder())
