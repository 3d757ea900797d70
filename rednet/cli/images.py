"""Opening every image before a training, for ``--check-data``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.utils import track_iter_progress

from rednet.cli.config import dataset_configs
from rednet.errors import ImageError, UserError

_SHOWN = 3


def check_images(config: Config, loaders: Sequence[str]) -> None:
    """Opens every image of the loaders, with a progress bar.

    Raises:
        UserError: If some cannot be read or have another size than the annotations say, with their
            number and the first ones.
    """
    load = TRANSFORMS.build(dict(type="LoadImage"))
    for loader in loaders:
        for dataset in dataset_configs(config, loader):
            samples = _samples(dataset, config.get("default_scope"))
            found = (_problem(load, sample) for sample in track_iter_progress(samples))
            problems = [each for each in found if each]
            if problems:
                shown = "; ".join(problems[:_SHOWN])
                raise UserError(f"{loader}: {len(problems)} of {len(samples)} images: {shown}")


def _samples(config: Any, scope: str | None) -> list[dict[str, Any]]:
    """What a data set knows about each sample that has an image file."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        dataset = registry.build({**config, "pipeline": []})
    samples = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [each for each in samples if each.get("img_path")]


def _problem(load: Callable[[dict], Any], sample: dict[str, Any]) -> str | None:
    try:
        height, width = load(dict(img_path=sample["img_path"]))["img"].shape[:2]
    except ImageError as error:
        return str(error)
    expected = (sample.get("height", height), sample.get("width", width))
    if expected != (height, width):
        return f"{sample['img_path']} is {height} x {width}, its annotations say {expected}"
    return None
