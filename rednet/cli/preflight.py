"""Checks of a config against the machine, before anything slow is built."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS

from rednet.cli.coco import check_coco
from rednet.cli.config import dataset_configs
from rednet.cli.config_keys import fields
from rednet.cli.paths import check_checkpoint
from rednet.errors import MissingDependencyError, UserError, first_names
from rednet.mmcv_ops.installation import import_operators, import_torchvision, notes_on_mmcv

DEMO = "configs/demo/rednet26_digits.py"
DIGITS_ON_PHOTOGRAPHS = "tools/dataset_converters/make_digits_coco.py"
# What pip calls the libraries whose scope has another name.
DISTRIBUTIONS = {"mmseg": "mmsegmentation", "mmaction": "mmaction2"}
NEED_OPERATORS = ("mmdet", "mmseg")
_NAMES_SHOWN = 5
# mmengine takes one init_cfg or a list of them.
_PRETRAINED = re.compile(r"\.init_cfg(\.\d+)?\.checkpoint$")


def check_config(config: Config, loaders: Sequence[str]) -> list[str]:
    """Checks the data, classes and checkpoints that a config needs.

    Args:
        config: The config. Top-k accuracies with k larger than the number of classes are removed.
        loaders: The fields of the data loaders that will be used, the training loader first.

    Returns:
        A line for each thing that the user should know but that is not an error.

    Raises:
        UserError: If something is missing or does not fit. The message says what was found where,
            and what to do.
    """
    scope = config.get("default_scope")
    check_pretrained(config)
    folders = {}
    coco_notes: list[str] = []
    checked: dict[Any, list[str]] = {}
    for loader in loaders:
        for dataset in dataset_configs(config, loader):
            lazy = _build_lazily(dataset, scope)
            if lazy is None:
                continue
            _check_class_names(loader, lazy)
            _check_paths(loader, lazy)
            if scope == "mmdet" and str(lazy.ann_file).endswith(".json"):
                coco_notes += _check_coco(loader, lazy, config, checked)
            if scope == "mmseg":
                _check_pixel_classes(loader, lazy, config)
            if _has_class_folders(lazy, scope):
                folders[loader] = _class_folders(loader, lazy)
    if "train_dataloader" in loaders:
        _check_checkpoints(config)
    notes = [
        *notes_on_mmcv(),
        *dict.fromkeys(coco_notes),
        *check_classes(folders, _head_classes(config)),
    ]
    return notes + _limit_topk(config)


# ---- libraries


def check_scope(scope: str | None) -> None:
    """Checks the library of a config, and mmcv's operators and torchvision if it uses them.

    Raises:
        MissingDependencyError: If one is missing or does not load, with the command that helps.
    """
    if scope is None or scope == "mmengine":
        return
    if importlib.util.find_spec(scope) is None:
        raise MissingDependencyError(
            f"the config is written for {scope}, which is not installed: "
            f"pip install {DISTRIBUTIONS.get(scope, scope)}"
        )
    if scope in NEED_OPERATORS:
        import_operators()
    # mmengine imports torchvision for the environment that it logs.
    if scope == "mmpretrain" or importlib.util.find_spec("torchvision"):
        import_torchvision(f"{scope} uses")


def check_pretrained(config: Config) -> None:
    """Checks that ``model.pretrained``, which mmseg gives to the backbone, is one it accepts.

    Raises:
        UserError: If not.
    """
    model = config.get("model") or {}
    backbone = model.get("backbone")
    if not model.get("pretrained") or not isinstance(backbone, Mapping):
        return
    with MODELS.switch_scope_and_registry(config.get("default_scope")) as registry:
        constructor = registry.get(backbone["type"])
    if constructor is None or _accepts_pretrained(constructor):
        return
    raise UserError(
        f"model.pretrained={model['pretrained']!r} is not an argument of {backbone['type']}: "
        "--cfg-options model.pretrained=None, and model.backbone.init_cfg names a checkpoint"
    )


def _accepts_pretrained(constructor: Any) -> bool:
    parameters = inspect.signature(constructor).parameters
    return "pretrained" in parameters or any(
        each.kind is each.VAR_KEYWORD for each in parameters.values()
    )


# ---- files


def _build_lazily(config: Mapping[str, Any], scope: str | None) -> Any:
    """Builds the data set without its data and pipeline, which is enough to know its paths.

    Returns:
        The data set, or None for a class or function that is not mmengine's: it has no such paths.
    """
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(config["type"]) if isinstance(config["type"], str) else config["type"]
        is_mmengines = isinstance(kind, type) and issubclass(kind, BaseDataset)
        if kind is not None and not is_mmengines:
            return None
        return registry.build({**config, "lazy_init": True, "pipeline": []})


def _check_paths(loader: str, dataset: Any) -> None:
    # A data set that downloads its files makes their directory itself.
    if not isinstance(dataset, BaseDataset) or getattr(dataset, "download", False):
        return
    paths = [dataset.data_root, dataset.ann_file, *(dataset.data_prefix or {}).values()]
    for path in filter(None, paths):
        if (
            isinstance(path, (str, os.PathLike))
            and "://" not in str(path)
            and not os.path.exists(path)
        ):
            raise UserError(_no_data(loader, dataset, f"{path} does not exist"))


def _no_data(loader: str, dataset: BaseDataset, problem: str) -> str:
    root = dataset.data_root or "."
    layout, advice = "", f"try {DEMO}, which needs no data"
    if "seg_map_path" in (dataset.data_prefix or {}):
        advice = (
            f"make data for configs/demo: python {DIGITS_ON_PHOTOGRAPHS} data/digits_seg "
            "--semantic --most-digits 16"
        )
    elif hasattr(dataset, "download"):
        advice = "let it be downloaded by dataset.download=True of each dataloader"
    elif not dataset.ann_file:
        layout = f" {root} must hold train/<class>/*.JPEG and val/<class>/*.JPEG."
    elif dataset.ann_file.endswith(".json"):  # COCO's format
        advice = f"make data for the detectors in configs/demo: python {DIGITS_ON_PHOTOGRAPHS}"
    return (
        f"{problem}, where {loader} looks for its data.{layout} Give another folder with "
        f"--cfg-options train_dataloader.dataset.data_root=FOLDER, or {advice}"
    )


def _check_checkpoints(config: Config) -> None:
    """Checks the checkpoints that a training starts from."""
    model = fields(config.get("model"), "model")
    named = {key: path for key, path in model if _PRETRAINED.search(key)}
    for key, path in {"load_from": config.get("load_from"), **named}.items():
        if path:
            check_checkpoint(path, key)


# ---- classes


def _check_class_names(loader: str, dataset: Any) -> None:
    for name in dataset.metainfo.get("classes") or ():
        if not isinstance(name, str):
            raise UserError(
                f"the classes of {loader}'s metainfo must be texts, got {name!r}: --cfg-options "
                "reads digits as numbers, so write such names in a config"
            )


def _has_class_folders(dataset: Any, scope: str | None) -> bool:
    if scope != "mmpretrain":
        return False
    from mmpretrain.datasets import CustomDataset

    return isinstance(dataset, CustomDataset) and dataset.with_label and not dataset.ann_file


def _class_folders(loader: str, dataset: Any) -> tuple[str, list[str]]:
    """The folder of the class folders, and the names of the classes as mmpretrain finds them."""
    from mmpretrain.datasets.custom import find_folders

    folder = dataset.img_prefix
    classes = find_folders(folder)[0]
    number, others = _count_images(Path(folder), classes, dataset.extensions)
    if not number:
        raise UserError(_no_data(loader, dataset, f"{folder} holds no image in a class folder"))
    if others:
        kind = "a folder" if others[0].is_dir() else "a link that leads nowhere"
        raise UserError(
            f"{folder}: {len(others)} of {number} images are not files; the first, "
            f"{others[0].path}, is {kind}"
        )
    if dataset.CLASSES is not None and len(dataset.CLASSES) != len(classes):
        raise UserError(
            f"{folder} holds {len(classes)} class folders, and the config names "
            f"{len(dataset.CLASSES)} classes for {loader}: add or remove folders until they agree"
        )
    return folder, classes


def _count_images(
    folder: Path, classes: Sequence[str], extensions: Sequence[str]
) -> tuple[int, list[os.DirEntry[str]]]:
    """The number of images, and those that are not files, which mmpretrain leaves out silently."""
    number, others = 0, []
    for name in classes:
        for image in _images(folder / name, tuple(extensions)):
            number += 1
            if not image.is_file():
                others.append(image)
    return number, others


def _images(folder: Path, extensions: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """What has the name of an image. The listing of a folder tells what most entries are."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.lower().endswith(extensions):
            yield entry
        elif entry.is_dir():
            yield from _images(Path(entry.path), extensions)


def _head_classes(config: Config) -> int | None:
    head = (config.get("model") or {}).get("head")
    return head.get("num_classes") if isinstance(head, Mapping) else None


def check_classes(
    folders: Mapping[str, tuple[str, Sequence[str]]], head_classes: int | None
) -> list[str]:
    """Checks that all data have the same classes, and not more than the model's head.

    Args:
        folders: The folder of class folders and their names, by data loader.
        head_classes: Outputs of the head, or None if the config does not name the number.

    Returns:
        A line if the head has more outputs than there are classes.

    Raises:
        UserError: If the classes of two loaders differ or the head has too few outputs.
    """
    if not folders:
        return []
    (first, classes), *others = folders.values()
    for folder, names in others:
        if list(names) != list(classes):
            raise UserError(
                f"{first} holds {len(classes)} class folders and {folder} {len(names)}, "
                "but both must hold the same"
                f"{_only_in(first, classes, names)}{_only_in(folder, names, classes)}; "
                f"model.head.num_classes is {head_classes}"
            )
    found = len(classes)
    if head_classes is None or found == head_classes:
        return []
    advice = f"--cfg-options model.head.num_classes={found}"
    if found > head_classes:
        raise UserError(
            f"{first} holds {found} class folders, and model.head.num_classes is {head_classes}: "
            f"remove folders, or let the head have {found} classes with {advice}"
        )
    return [
        f"{first} holds {found} class folders, and model.head.num_classes is {head_classes}: "
        f"{head_classes - found} outputs stay unused; {advice} makes the head fit"
    ]


def _check_coco(
    loader: str, dataset: Any, config: Config, checked: dict[Any, list[str]]
) -> list[str]:
    """Checks a data set of COCO's format, and that every class is an output of the heads.

    Args:
        loader: The loader of the data set.
        dataset: The data set.
        config: The config.
        checked: Lines about files that other loaders have too, which are read once.
    """
    from mmdet.datasets import CocoDataset

    classes = dataset.metainfo.get("classes") or ()
    if not isinstance(dataset, CocoDataset) or not classes or isinstance(classes, str):
        return []
    keeps_empty = (dataset.filter_cfg or {}).get("filter_empty_gt") is False
    file = (dataset.ann_file, tuple(classes), keeps_empty)
    if file not in checked:
        checked[file] = check_coco(dataset.ann_file, classes, keeps_empty=keeps_empty)
    notes = list(checked[file])
    for key, outputs in fields(config.get("model"), "model"):
        if not key.endswith("_head.num_classes") or "rpn_head" in key or outputs == len(classes):
            continue
        line = f"{loader} has {len(classes)} classes, and {key} is {outputs}"
        advice = f"--cfg-options {key}={len(classes)} makes the head fit"
        if outputs < len(classes):
            raise UserError(f"{line}: {advice}")
        notes.append(f"{line}: {outputs - len(classes)} outputs stay unused; {advice}")
    return notes


def _check_pixel_classes(loader: str, dataset: Any, config: Config) -> None:
    """Checks that every class of a segmentation data set is an output of the decode head."""
    head = (config.get("model") or {}).get("decode_head")
    outputs = head.get("num_classes") if isinstance(head, Mapping) else None
    classes = len(dataset.metainfo.get("classes") or ())
    if outputs is not None and classes > outputs:
        raise UserError(
            f"{loader} has {classes} classes, and model.decode_head.num_classes is {outputs}: "
            f"--cfg-options model.decode_head.num_classes={classes}"
        )


def _only_in(folder: str, names: Sequence[str], others: Sequence[str]) -> str:
    extra = sorted(set(names) - set(others))
    return f"; only in {folder}: {first_names(extra, _NAMES_SHOWN)}" if extra else ""


def _limit_topk(config: Config) -> list[str]:
    """Removes top-k accuracies with k larger than the number of classes."""
    classes = _head_classes(config)
    notes = []
    for field in ("val_evaluator", "test_evaluator"):
        evaluators = config.get(field) or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            topk = evaluator.get("topk")
            if classes is None or not isinstance(topk, (list, tuple)) or max(topk) <= classes:
                continue
            evaluator["topk"] = tuple(k for k in topk if k <= classes)
            notes.append(
                f"{field}: topk is {evaluator['topk']}, since the model has {classes} classes"
            )
    return notes
