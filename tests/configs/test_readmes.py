"""README and metafile of each folder of configs agree with each other and with what is counted."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from rednet.cli.config import read_config
from rednet.cli.model import build_model
from rednet.flops import Cost, count_flops

pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FOLDERS = [CONFIGS, CONFIGS / "variants", CONFIGS / "detection", CONFIGS / "segmentation"]
# Of mmcv's deformable convolution no FLOPs are counted.
UNCOUNTED = "resnet50_saconv-deform_imagenet"
# Counting a detector at its full size takes seconds: one stands for all.
COUNTED_DETECTOR = "faster-rcnn_rednet50_invfpn-invhead_1x_coco"


@functools.cache
def metafile(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a metafile by name."""
    content = yaml.safe_load((folder / "metafile.yml").read_text())
    return {model["Name"]: model for model in content["Models"]}


@functools.cache
def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The table rows of a README that link to a config, by the config's name."""
    found, header = {}, []
    for line in (folder / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if "|" in line else []
        if "config" in cells:
            header = cells
        link = re.search(r"\[([\w.-]+)\.py\]\(\1\.py\)", line)
        if link:
            found[link[1]] = dict(zip(header, cells, strict=True))
    return found


CLASSIFIERS = [*metafile(CONFIGS), *metafile(CONFIGS / "variants")]
DETECTORS = list(metafile(CONFIGS / "detection"))


def entry(name: str) -> dict[str, Any]:
    return next(metafile(folder)[name] for folder in FOLDERS if name in metafile(folder))


@functools.lru_cache
def counted(name: str) -> Cost:
    path = ROOT / entry(name)["Config"]
    side = 32 if name.endswith("cifar10") else 224
    return count_flops(build_model(read_config(str(path))[0]), torch.zeros(1, 3, side, side))[""]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_and_metafile_list_the_configs(folder: Path) -> None:
    configs = {path.stem for path in folder.glob("*.py")}
    assert rows(folder).keys() == configs
    assert metafile(folder).keys() == configs


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_rounds_what_the_metafile_says(folder: Path) -> None:
    for name, model in metafile(folder).items():
        row, metadata = rows(folder)[name], model["Metadata"]
        assert model["Config"] == str((folder / f"{name}.py").relative_to(ROOT))
        assert row["params (M), counted"] == f"{metadata['Parameters'] / 1e6:.2f}"
        digits = 1 if folder.name in ("detection", "segmentation") else 2
        flops = metadata.get("FLOPs")
        expected = "not counted" if flops is None else f"{flops / 1e9:.{digits}f}"
        assert row["FLOPs (G), counted"] == expected
        published = {
            "top-1 (%), published": "Top 1 Accuracy",
            "box AP, published": "box AP",
            "mask AP, published": "mask AP",
            "mIoU, published": "mIoU",
        }
        metrics = {
            key: value
            for result in model["Results"]
            for key, value in result.get("Metrics", {}).items()
        }
        for column, metric in published.items():
            if row.get(column):
                assert float(row[column]) == metrics.pop(metric)
        assert not metrics


def test_every_metafile_is_in_the_index() -> None:
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    assert index["Import"] == [f"{folder.relative_to(ROOT)}/metafile.yml" for folder in FOLDERS]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_the_counts_of_their_metafile(name: str) -> None:
    metadata = entry(name)["Metadata"]
    if name == UNCOUNTED:
        pytest.importorskip("mmcv.ops")
        model = build_model(read_config(str(ROOT / entry(name)["Config"]))[0])
        assert sum(each.numel() for each in model.parameters()) == metadata["Parameters"]
        return
    cost = counted(name)
    assert cost.parameters == metadata["Parameters"]
    is_rednet = name.startswith("rednet")
    assert (cost.published if is_rednet else cost.macs) == metadata["FLOPs"]


def test_the_published_figures_of_rednet_fit_the_larger_stem() -> None:
    """What README says of the two stems."""
    text = (CONFIGS / "README.md").read_text()
    for name in (name for name in CLASSIFIERS if name.startswith("rednet")):
        row, small = rows(CONFIGS)[name], counted(name)
        config = read_config(
            str(ROOT / entry(name)["Config"]), {"model.backbone.stem_kernel_size": 7}
        )[0]
        parameters = sum(each.numel() for each in build_model(config).parameters())
        assert parameters == small.parameters + 720
        # At each of 112 x 112 pixels: 2 groups more of 40 taps, which 32 / 4 channels generate.
        extra = 112 * 112 * (32 * 40 + 2 * 40 * (8 + 1))
        flops = small.published + extra
        assert float(row["params (M), published"]) == round(parameters / 1e6, 2)
        assert float(row["FLOPs (G), published"]) == pytest.approx(flops / 1e9, abs=0.006)
        for figure in (f"{parameters:,}", f"{small.parameters:,}"):
            assert figure in text
        for figure in (flops, small.published):
            assert f" {figure / 1e9:.3f} " in text


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_have_the_parameters_of_their_metafile(name: str) -> None:
    model = detector(name, "meta")
    # MobileNetV2 freezes its first stages here.
    model.train()
    trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trainable == entry(name)["Metadata"]["Parameters"]
    total = rows(CONFIGS / "detection")[name].get("all params (M), counted")
    if total:
        assert total == f"{sum(each.numel() for each in model.parameters()) / 1e6:.2f}"


def test_a_detector_has_the_flops_of_its_metafile() -> None:
    from mmengine.structures import BaseDataElement

    model = detector(COUNTED_DETECTOR, "cpu")
    size = (800, 1280)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    sample = BaseDataElement(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
    model.forward = functools.partial(model.forward, data_samples=[sample])
    flops = count_flops(model, torch.zeros(1, 3, *size))[""].published
    assert flops == pytest.approx(entry(COUNTED_DETECTOR)["Metadata"]["FLOPs"], abs=5e5)


def detector(name: str, device: str) -> nn.Module:
    pytest.importorskip("mmdet")
    config = Config.fromfile(CONFIGS / "detection" / f"{name}.py")
    if "rednet50" in name:
        config.model.backbone.init_cfg.checkpoint = "unread.pth"
    init_default_scope("mmdet")
    with torch.device(device):
        return MODELS.build(config.model)
