"""The finder that offers ``mmcv._ext`` where nothing else does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


def register_finder() -> None:
    """Appends the finder to ``sys.meta_path`` unless it is there."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ExtensionFinder())
