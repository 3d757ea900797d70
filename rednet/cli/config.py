"""Reading configs and applying ``--cfg-options``, with checks before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    RUNNERS,
    VISUALIZERS,
    Registry,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.utils import import_modules_from_strings
from torch.utils.data import DataLoader

from rednet.cli.config_file import read_file
from rednet.cli.config_keys import LOADERS, fields
from rednet.cli.failures import text_for_number
from rednet.cli.suggestions import did_you_mean
from rednet.errors import UserError

# The loaders whose change of data_root each loader follows, nearest first.
LEADERS = {
    "val_dataloader": ("train_dataloader",),
    "test_dataloader": ("val_dataloader", "train_dataloader"),
}
EVALUATORS = {"val_dataloader": "val_evaluator", "test_dataloader": "test_evaluator"}

DEFAULT_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")

# Fields that mmengine and the commands read, besides the arguments of the runner.
OTHER_FIELDS = (
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
)
# Variables of many configs whose names resemble those of fields.
VARIABLES = ("models", "test_pipeline", "train_pipeline", "val_pipeline")
# The registry in which the types of a field are registered.
REGISTRIES: dict[str, Registry] = {
    "model": MODELS,
    "train_dataloader": DATASETS,
    "val_dataloader": DATASETS,
    "test_dataloader": DATASETS,
    "val_evaluator": METRICS,
    "test_evaluator": METRICS,
    "optim_wrapper": OPTIM_WRAPPERS,
    "default_hooks": HOOKS,
    "custom_hooks": HOOKS,
    "visualizer": VISUALIZERS,
    "log_processor": LOG_PROCESSORS,
}
# Keys that mmengine removes before it calls the class, and those of the class that --amp uses.
TAKEN_OUT = {
    "dataloader": {"dataset", "sampler", "batch_sampler", "num_batch_per_epoch"},
    "train_cfg": {"by_epoch"},
    "optim_wrapper": {"optimizer", "constructor", "paramwise_cfg", "loss_scale", "dtype"},
}


def read_config(path: str, options: Mapping[str, Any] | None = None) -> tuple[Config, list[str]]:
    """Reads a config file and applies the options of the command line to it.

    If the options change only the ``data_root`` of the training data, validation and test data
    follow, see :func:`follow_data_root`.

    Args:
        path: The config file.
        options: Values by dotted key, as ``--cfg-options`` gives them.

    Returns:
        The config, and a line for the user about each change that follows from the options.

    Raises:
        UserError: If there is no such file or an option does not fit the config.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no config file {path}{_similar_configs(path)}")
    config = read_file(path)
    check_fields(config)
    if not options:
        return config, []
    original = Config(config.to_dict())
    try:
        config.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:  # mmengine's two ways to say that a key leads nowhere
        raise UserError(f"--cfg-options do not fit {path}: {error.args[0]}") from error
    if any(key.startswith("custom_imports") for key in options):
        _import_modules(config)
    check_option_keys(original, config, options)
    return config, follow_data_root(original, config, options)


def _import_modules(config: Config) -> None:
    """Imports what mmengine imports while it reads a file, and so before options change it."""
    try:
        import_modules_from_strings(**(config.custom_imports or {"imports": None}))
    except (ImportError, TypeError) as error:
        raise UserError(f"--cfg-options custom_imports: {error}") from error


def _similar_configs(path: str) -> str:
    folder = next(each for each in (*Path(path).parents, Path()) if each.is_dir())
    found = [str(each) for each in folder.glob("**/*.py") if "_base_" not in each.parts]
    return did_you_mean(path, found, cutoff=0.5)


def import_rednet(config: Config) -> None:
    """Lets the config that a run writes to its work directory stand on its own.

    The options and the commands may name types of this package in a config that does not import it.
    """
    imports = config.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if not any(name.partition(".")[0] == "rednet" for name in names):
        config.custom_imports = {
            "allow_failed_imports": False,
            **imports,
            "imports": [*names, "rednet"],
        }


# ---- keys


def check_fields(config: Config) -> None:
    """Refuses a top-level field or default hook whose name is that of another one, misspelt.

    Raises:
        UserError: With the names that it may have been meant as.
    """
    known = _fields(config.get("runner_type", "Runner"))
    hooks = config.get("default_hooks")
    names: list[tuple[str, str, Collection[str]]]
    names = [("", name, known) for name in config if name not in VARIABLES]
    names += [("default_hooks.", name, DEFAULT_HOOKS) for name in hooks or ()]
    for parent, name, candidates in names:
        advice = did_you_mean(name, candidates, cutoff=0.88)
        if name not in candidates and advice:
            raise UserError(f"config {config.filename}: nothing reads {parent}{name}{advice}")


def check_numbers(config: Config) -> None:
    """Refuses a text where a class expects a number, which may fail only during the training.

    Raises:
        UserError: With the key and its value.
    """
    for key, node in fields(dict(config.items()), ""):
        parents = key.split(".")
        if not isinstance(node, Mapping):
            continue
        constructor = _constructor(parents, node, config.get("default_scope"))
        name = text_for_number(node, constructor)
        if name is not None:
            raise UserError(f"{key}.{name} must be a number, got {node[name]!r}")
    for name in ("max_epochs", "max_iters"):
        limit = (config.get("train_cfg") or {}).get(name)
        if isinstance(limit, (int, float)) and limit < 1:
            raise UserError(f"train_cfg.{name} must be at least 1, got {limit}")


def check_option_keys(original: Config, config: Config, options: Collection[str]) -> None:
    """Refuses a key that nothing would read.

    mmengine adds any new key to a config. Here the first part of a key has to be a field that the
    runner or a tool reads, and not a variable of the file, whose value is elsewhere by now. Each
    other part that is new has to be an argument of the class that its parent names; and where the
    options name another class than the file, what is left of the file has to be.

    Args:
        original: The config as the file gives it.
        config: The config with the options.
        options: The dotted keys of the options.

    Raises:
        UserError: If a key fails, with the names that it may have been meant as.
    """
    before, after = original.to_dict(), config.to_dict()
    known = _fields(after.get("runner_type", "Runner"))
    for key in options:
        parts = key.split(".")
        head = parts[0]
        if head not in known:
            advice = (
                "; change the fields that the file makes from it"
                if head in before
                else did_you_mean(head, known)
            )
            raise UserError(f"--cfg-options {key}: nothing reads the field {head!r}{advice}")
        for depth in range(1, len(parts)):
            _check_part(key, depth, before, after)


def _check_part(key: str, depth: int, before: Mapping, after: Mapping) -> None:
    """Checks one part of a key, and what its parent keeps of the file under another class."""
    *parents, name = key.split(".")[: depth + 1]
    old, new = _descend(before, parents), _descend(after, parents)
    if not isinstance(new, Mapping):
        return
    allowed = _arguments(parents, new, after.get("default_scope"))
    if allowed is None:
        return
    old = old if isinstance(old, Mapping) else {}
    trusted = old if old.get("type") == new.get("type") else {}
    unread = [each for each in new if each not in trusted and each not in allowed]
    parent = ".".join(parents)
    if name in unread:
        raise UserError(
            f"--cfg-options {key}: {parent} has no {name!r}{did_you_mean(name, allowed)}"
        )
    left = [repr(each) for each in unread if each in old]
    if left:
        raise UserError(
            f"--cfg-options {key}: {new['type']} does not accept {', '.join(left)}, which the file "
            f"has for {old.get('type')}; {parent}._delete_=True replaces it as a whole"
        )


def _fields(runner_type: str) -> set[str]:
    """The fields that are read where a config names this class of runner."""
    runner = RUNNERS.get(runner_type) or Runner
    return {*inspect.signature(runner).parameters, *OTHER_FIELDS} - {"cfg"}


def _descend(node: Any, parts: Iterable[str]) -> Any:
    for part in parts:
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _arguments(parents: list[str], parent: Mapping, scope: str | None) -> set[str] | None:
    """The keys that the dict at ``parents`` may have, or None where that cannot be told."""
    if parents == ["default_hooks"]:  # the Runner has none of another name to complete
        return {name for name, hook in parent.items() if not _lacks_type(hook)}
    constructor = _constructor(parents, parent, scope)
    if constructor is None:
        return None
    parameters = inspect.signature(constructor).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    taken_out = next(
        (keys for suffix, keys in TAKEN_OUT.items() if parents[-1].endswith(suffix)), set()
    )
    if REGISTRIES.get(parents[0]) is HOOKS:
        taken_out = {"priority"}
    return {each.name for each in parameters} | taken_out | {"type", "_scope_"}


def _lacks_type(config: Any) -> bool:
    return isinstance(config, Mapping) and "type" not in config


def _constructor(parents: list[str], parent: Mapping, scope: str | None) -> Any:
    if parents == ["train_cfg"] and "type" not in parent:
        return EpochBasedTrainLoop if parent.get("by_epoch", True) else IterBasedTrainLoop
    if len(parents) == 1 and parents[0] in LOADERS:
        return DataLoader
    if parents == ["optim_wrapper"] and "type" not in parent:
        return OptimWrapper
    registry = OPTIMIZERS if parents[-1] == "optimizer" else REGISTRIES.get(parents[0])
    # mmcv's builders take keys of their own out of norm_cfg and its like; pipelines have another
    # registry.
    if registry is None or parents[-1].endswith("_cfg") or "pipeline" in parents:
        return None
    if not isinstance(parent.get("type"), str):
        return None
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(parent["type"])


# ---- data_root


def follow_data_root(original: Config, config: Config, options: Collection[str] = ()) -> list[str]:
    """Lets validation and test data follow a changed ``data_root`` of the training data.

    Test data also follow the validation data. Only data sets follow that had the same ``data_root``
    in the file and are not given one by the options. An evaluator's ``ann_file`` below the old root
    follows with its data.

    Args:
        original: The config as the file gives it.
        config: The config after the options were applied; it is changed in place.
        options: The dotted keys of the options.

    Returns:
        A line for each change.
    """
    notes = []
    for loader, leaders in LEADERS.items():
        if any(key.startswith(f"{loader}.") and key.endswith(".data_root") for key in options):
            continue
        moved = next(filter(None, (_moved_roots(original, config, each) for each in leaders)), {})
        for dataset in dataset_configs(config, loader):
            old = dataset.get("data_root")
            if old in moved:
                dataset["data_root"] = moved[old]
                notes.append(f"{loader}: data_root is {moved[old]} too, in place of {old}")
    for loader, evaluator in EVALUATORS.items():
        if f"{evaluator}.ann_file" not in options:
            notes += _move_annotations(config, evaluator, _moved_roots(original, config, loader))
    return notes


def dataset_configs(config: Config, loader: str) -> Iterator[Any]:
    """The configs of the data sets of a loader, those inside wrappers such as RepeatDataset too."""
    pending = [(config.get(loader) or {}).get("dataset")]
    while pending:
        dataset = pending.pop()
        if not isinstance(dataset, Mapping):
            continue
        if "dataset" in dataset or "datasets" in dataset:
            pending += [dataset.get("dataset"), *dataset.get("datasets", ())]
        else:
            yield dataset


def _moved_roots(original: Config, config: Config, loader: str) -> dict[str, str]:
    pairs = zip(dataset_configs(original, loader), dataset_configs(config, loader), strict=False)
    roots = ((before.get("data_root"), after.get("data_root")) for before, after in pairs)
    return {old: new for old, new in roots if old and new and old != new}


def _move_annotations(config: Config, field: str, moved: Mapping[str, str]) -> list[str]:
    notes = []
    evaluators = config.get(field) or []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        path = Path(evaluator.get("ann_file") or "")
        for old, new in moved.items():
            if Path(old) in path.parents:
                evaluator["ann_file"] = str(Path(new) / path.relative_to(old))
                notes.append(f"{field}: ann_file is {evaluator['ann_file']} too")
    return notes
