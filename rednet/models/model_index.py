"""Makes RedNet's models known by name to mmpretrain, mmdet and mmseg.

mmpretrain has a hub for it (``get_model``, ``list_models`` and its inferencers) and is not imported
for it. If it is imported already, the models are registered at once, otherwise as soon as it is: a
finder at the front of ``sys.meta_path`` waits for the module that holds mmpretrain's model hub, and
leaves when that was loaded.

The inferencers of mmdet and mmseg have none: mmengine's ``BaseInferencer`` reads the metafiles of
the library only. Those of RedNet's detectors and segmentors are read with them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from mmengine.fileio import load
from mmengine.infer import BaseInferencer

HUB = "mmpretrain.apis.model"
# In a checkout, links to the files at its top level; in an installed package, copies.
MIM = Path(__file__).parents[1] / ".mim"
# Not model-index.yml, which names the detectors too.
CLASSIFIERS = (MIM / "configs/metafile.yml", MIM / "configs/variants/metafile.yml")
# By the library whose inferencers run them.
METAFILES = {
    "mmdet": MIM / "configs/detection/metafile.yml",
    "mmseg": MIM / "configs/segmentation/metafile.yml",
}


def register_models() -> None:
    """Registers the classifiers in mmpretrain's hub, and the others for mmengine's inferencers.

    The classifiers are registered now, or when mmpretrain is imported.
    """
    read = BaseInferencer._get_models_from_metafile
    if not hasattr(read, "__wrapped__"):
        BaseInferencer._get_models_from_metafile = staticmethod(_with_own_models(read))
    if HUB in sys.modules:
        _register(sys.modules[HUB])
    else:
        sys.meta_path.insert(0, _HubFinder())


def _with_own_models(read: Callable[[str], Iterator[dict]]) -> Callable[[str], Iterator[dict]]:
    """Reads RedNet's models for a library, given by the folder of its metafiles, then its own."""

    @wraps(read)
    def read_all(folder: str) -> Iterator[dict]:
        for library, metafile in METAFILES.items():
            if library in sys.modules and folder == BaseInferencer._get_repo_or_mim_dir(library):
                for model in load(metafile)["Models"]:
                    yield {"Weights": None, **model, "Config": str(MIM / model["Config"])}
        yield from read(folder)

    return read_all


def _register(hub: ModuleType) -> None:
    for metafile in CLASSIFIERS:
        hub.ModelHub.register_model_index(metafile, config_prefix=MIM)


class _HubFinder(MetaPathFinder):
    """Finds the hub where it is, and has it loaded by a loader that registers the models after."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != HUB:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads a module as another loader does, then registers the models in it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register(module)
