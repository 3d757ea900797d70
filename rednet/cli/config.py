"""Reading configs and applying ``--cfg-options``, with checks before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from mmengine.utils.dl_utils import set_multi_processing
from torch.nn.utils import clip_grad_norm_

from rednet.cli.config_file import read_file
from rednet.cli.config_keys import constructor_of, fields
from rednet.cli.failures import text_for_number
from rednet.cli.suggestions import did_you_mean
from rednet.errors import UserError

# The loaders whose change of data_root each loader follows, nearest first.
LEADERS = {
    "val_dataloader": ("train_dataloader",),
    "test_dataloader": ("val_dataloader", "train_dataloader"),
}
EVALUATORS = {"val_dataloader": "val_evaluator", "test_dataloader": "test_evaluator"}

# What mmengine reads of dicts in which it leaves other keys alone, or does not name them.
KEYS = {
    "default_hooks": (
        "runtime_info",
        "timer",
        "sampler_seed",
        "logger",
        "param_scheduler",
        "checkpoint",
    ),
    "auto_scale_lr": ("enable", "base_batch_size"),
    "env_cfg": ("cudnn_benchmark", "dist_cfg", "mp_cfg", "resource_limit"),
    "env_cfg.dist_cfg": ("backend", "timeout"),
    "optim_wrapper.paramwise_cfg": (
        *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"),
        *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate"),
    ),
}

# Dicts that become the arguments of a function, with the names of these.
ARGUMENTS = {
    "compile": ("target", *inspect.signature(torch.compile).parameters),
    "env_cfg.mp_cfg": tuple(inspect.signature(set_multi_processing).parameters),
    "optim_wrapper.clip_grad": (
        *("type", "clip_value"),
        *inspect.signature(clip_grad_norm_).parameters,
    ),
    "randomness": ("seed", "diff_rank_seed", "deterministic"),
}

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
    if not options:
        check_fields(config)
        return config, []
    original = Config(config.to_dict())
    try:
        config.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:  # mmengine's two ways to say that a key leads nowhere
        raise UserError(f"--cfg-options do not fit {path}: {error.args[0]}") from error
    if any(key.startswith("custom_imports") for key in options):
        _import_modules(config)
    check_option_keys(original, config, options)
    check_fields(config)
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
    """Refuses a field whose name is that of another one, misspelt, where nothing else would.

    These are the fields at the top level and the keys of ``KEYS``. In the dicts of ``ARGUMENTS``
    any unknown key is refused; some would fail only in the first iteration.

    Raises:
        UserError: With the names that it may have been meant as.
    """
    # At the top level, variables of the file may have similar names.
    known = _fields(config.get("runner_type", "Runner"))
    for name in config:
        if name not in VARIABLES:
            _check_name(config, "", name, known, did_you_mean(name, known, cutoff=0.88))
    for parent, keys in KEYS.items():
        for name in _keys_below(config, parent):
            _check_name(config, f"{parent}.", name, keys, did_you_mean(name, keys, cutoff=0.8))
    for parent, keys in ARGUMENTS.items():
        advice = f", whose keys are {', '.join(keys)}"
        for name in _keys_below(config, parent):
            _check_name(config, f"{parent}.", name, keys, did_you_mean(name, keys) or advice)


def _check_name(
    config: Config, parent: str, name: str, known: Collection[str], advice: str
) -> None:
    if name not in known and advice:
        raise UserError(f"config {config.filename}: nothing reads {parent}{name}{advice}")


def _keys_below(config: Config, key: str) -> list[str]:
    """The keys of a dict of the config, where mmengine reads it."""
    node: Any = dict(config.items())
    for name in key.split("."):
        # Constructors other than mmengine's have keys of their own in paramwise_cfg.
        if not isinstance(node, Mapping) or "constructor" in node:
            return []
        node = node.get(name)
    return list(node) if isinstance(node, Mapping) else []


def check_numbers(config: Config) -> None:
    """Refuses a text where a class expects a number, which may fail only during the training.

    Raises:
        UserError: With the key and its value.
    """
    for key, node in fields(dict(config.items()), ""):
        # Transforms accept texts such as 'inf'.
        if not isinstance(node, Mapping) or "pipeline" in key.split("."):
            continue
        constructor = constructor_of(key, node, config.get("default_scope"))
        name = text_for_number(node, constructor)
        if name is not None:
            raise UserError(f"{key}.{name} must be a number, got {node[name]!r}")
    for name in ("max_epochs", "max_iters"):
        limit = (config.get("train_cfg") or {}).get(name)
        if isinstance(limit, (int, float)) and limit < 1:
            raise UserError(f"train_cfg.{name} must be at least 1, got {limit}")


def check_option_keys(original: Config, config: Config, options: Collection[str]) -> None:
    """Refuses a key whose first part is not a field that the runner or a tool reads.

    mmengine adds any new key to a config, and a variable of the file has been used by now. Other
    parts are arguments of a class, which is built and refuses unknown ones itself.

    Args:
        original: The config as the file gives it.
        config: The config with the options.
        options: The dotted keys of the options.

    Raises:
        UserError: If a key fails, with the names that it may have been meant as.
    """
    known = _fields(config.get("runner_type", "Runner"))
    for key in options:
        head = key.partition(".")[0]
        if head not in known:
            advice = (
                "; change the fields that the file makes from it"
                if head in original
                else did_you_mean(head, known)
            )
            raise UserError(f"--cfg-options {key}: nothing reads the field {head!r}{advice}")


def _fields(runner_type: str) -> set[str]:
    """The fields that are read where a config names this class of runner."""
    runner = RUNNERS.get(runner_type) or Runner
    return {*inspect.signature(runner).parameters, *OTHER_FIELDS} - {"cfg"}


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
