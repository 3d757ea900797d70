"""Finding the part of a config that was being built when an exception was raised."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    VISUALIZERS,
    Registry,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, TestLoop, ValLoop
from torch.utils.data import DataLoader

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# The registries in which the types of a field are registered.
_REGISTRIES: dict[str, tuple[Registry, ...]] = {
    "model": (MODELS, TASK_UTILS),
    "train_dataloader": (DATASETS,),
    "val_dataloader": (DATASETS,),
    "test_dataloader": (DATASETS,),
    "val_evaluator": (METRICS,),
    "test_evaluator": (METRICS,),
    "optim_wrapper": (OPTIM_WRAPPERS,),
    "default_hooks": (HOOKS,),
    "custom_hooks": (HOOKS,),
    "visualizer": (VISUALIZERS,),
    "log_processor": (LOG_PROCESSORS,),
    "param_scheduler": (PARAM_SCHEDULERS,),
    "train_cfg": (LOOPS,),
    "val_cfg": (LOOPS,),
    "test_cfg": (LOOPS,),
}
# The classes of fields that need no type.
_WITHOUT_TYPE: dict[str, type] = {
    **dict.fromkeys(LOADERS, DataLoader),
    "optim_wrapper": OptimWrapper,
    "log_processor": LogProcessor,
    "val_cfg": ValLoop,
    "test_cfg": TestLoop,
}


@dataclass(frozen=True)
class Place:
    """A dict or list of a config.

    Attributes:
        key: Its dotted key.
        node: Its value in the config.
        constructor: The class or function that was called with it, if one was found.
        registry: The registry in which its type was looked for, if it was.
    """

    key: str
    node: Any
    constructor: Any = None
    registry: Registry | None = None


def frames_of(error: BaseException) -> list[FrameType]:
    """The frames that an exception passed, the outermost first."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def config_of(frames: list[FrameType]) -> Config | None:
    """The config that the frames work with: the first among their local variables."""
    values = (value for frame in frames for value in frame.f_locals.values())
    return next((value for value in values if isinstance(value, Config)), None)


def find_place(frames: list[FrameType], config: Config) -> Place | None:
    """Finds the innermost part of the config that a function of mmengine was building.

    mmengine hands on copies to which it and the libraries add keys, so parts are compared by value.
    """
    root = dict(config.items())
    place = Place("", root)
    for frame in frames:
        for value in _built(frame):
            key, node = _locate(value, place) or _locate(value, Place("", root)) or (None, None)
            if key is not None:
                known = frame.f_locals
                place = Place(key, node, known.get("obj_cls"), _registry(known.get("registry")))
    return place if place.key else None


def fields(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every field below a node of a config with its dotted key, parents first.

    Args:
        node: A dict or list. Other values have no fields.
        key: The node's own key; the root's is empty.
    """
    parts: Any = node.items() if isinstance(node, Mapping) else ()
    if isinstance(node, (list, tuple)):
        parts = enumerate(node)
    for name, value in parts:
        inner = f"{key}.{name}" if key else str(name)
        yield inner, value
        yield from fields(value, inner)


def constructor_of(key: str, node: Mapping[str, Any], scope: str | None) -> Any:
    """The class or function that a dict of a config is for, or None where that cannot be told.

    Args:
        key: Its dotted key.
        node: The dict.
        scope: The library whose types have no prefix.
    """
    parts = key.split(".")
    head, last = parts[0], parts[-1]
    if key == "train_cfg" and "type" not in node:
        return EpochBasedTrainLoop if node.get("by_epoch", True) else IterBasedTrainLoop
    if key in LOADERS or "type" not in node:
        return _WITHOUT_TYPE.get(key)
    # mmcv's builders take keys of their own out of norm_cfg and its like.
    if last.endswith("_cfg") or not isinstance(node["type"], (str, type)):
        return None
    if isinstance(node["type"], type):  # new-style configs import their classes
        return node["type"]
    registries = _REGISTRIES.get(head, ())
    if last == "optimizer":
        registries = (OPTIMIZERS,)
    elif "pipeline" in parts:
        registries = (TRANSFORMS,)
    for registry in registries:
        with registry.switch_scope_and_registry(scope) as scoped:
            constructor = scoped.get(node["type"])
        if constructor is not None:
            return constructor
    return None


def parameters_of(constructor: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function, those of base classes that get ``**kwargs`` too."""
    if not callable(constructor):
        return {}
    kinds = [constructor]
    if isinstance(constructor, type):
        kinds = [kind for kind in constructor.__mro__ if "__init__" in vars(kind)] or kinds
    found: dict[str, inspect.Parameter] = {}
    for kind in kinds:
        parameters = inspect.signature(kind).parameters
        found = {**parameters, **found}
        if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            break
    return found


def _built(frame: FrameType) -> list[Any]:
    """The dicts and lists that a function of mmengine got in order to build something."""
    code = frame.f_code
    module = frame.f_globals.get("__name__", "")
    if not module.startswith("mmengine.") or code.co_name in ("__init__", "from_cfg"):
        return []
    names = inspect.getargs(code).args
    values = [frame.f_locals.get(name) for name in names]
    return [each for each in values if isinstance(each, (Mapping, list, tuple)) and each]


def _locate(value: Any, place: Place) -> tuple[str, Any] | None:
    """The part below a place with which a value has most in common."""
    parts = [*fields(place.node, place.key), *([(place.key, place.node)] if place.key else [])]
    scores = [(_likeness(value, node), key, node) for key, node in parts]
    score, key, node = max(scores, key=lambda each: each[0], default=(0, "", None))
    return (key, node) if score else None


def _likeness(value: Any, node: Any) -> int:
    """How many items of a node are in a value; 0 if the value was not made from the node.

    Both need the same type, because what a function got may have changed in other items. A node
    without one, to which a class may have added its default, has to be there with all items.
    """
    if not isinstance(node, (Mapping, list, tuple)) or not node:
        return 0
    if not (isinstance(value, Mapping) and isinstance(node, Mapping)):
        return len(node) if type(value) is type(node) and value == node else 0
    if "type" in node and node["type"] != value.get("type"):
        return 0
    equal = sum(key in value and _equal(value[key], each) for key, each in node.items())
    return equal if "type" in node or equal == len(node) else 0


def _equal(one: Any, other: Any) -> bool:
    """Whether two fields are equal; arrays and tensors, which have no single answer, are not."""
    return isinstance(one, type(other)) and one.__eq__(other) is True


def _registry(value: Any) -> Registry | None:
    return value if isinstance(value, Registry) else None
