"""The segmentors: published size and cost, training and inference on images of any kind."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from rednet.cli.config import read_config
from rednet.cli.model import build_model
from rednet.cli.preflight import check_scope
from rednet.cli.random_batch import random_batch
from rednet.errors import MissingDependencyError, UserError
from rednet.flops import count_flops
from rednet.layers import Involution2d

mmseg = pytest.importorskip("mmseg", reason="segmentors need mmseg")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/segmentation"
SUFFIX = "_4xb2-80k_cityscapes-512x1024"
# Parameters, and published GFLOPs of an image of 1024 x 2048 pixels.
PUBLISHED = {
    "fpn_rednet50": (18463169, 293.9),
    "fpn_rednet50-invneck": (16372737, 205.2),
    "upernet_rednet50": (56380500, 1825.6),
}
DEMO = str(ROOT / "configs/demo/fpn_rednet26_digits-seg.py")
# The options of docs/segmentation.md, and a narrow network.
REDNET = {
    "model.pretrained": None,
    "model.backbone._delete_": True,
    "model.backbone.type": "RedNet",
    "model.backbone.depth": 26,
    "model.backbone.out_indices": (0, 1, 2, 3),
    "model.backbone.stem_channels": 32,
    "model.backbone.base_channels": 16,
}
DILATED = {"model.backbone.strides": (1, 2, 1, 1), "model.backbone.dilations": (1, 1, 2, 4)}
AUXILIARY = {"model.auxiliary_head.in_channels": 256, "model.auxiliary_head.channels": 16}
WIDTHS = [64, 128, 256, 512]
STOCK: dict[str, dict[str, Any]] = {
    "pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024": {
        **DILATED,
        **AUXILIARY,
        "model.decode_head.in_channels": 512,
    },
    "deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024": {
        **DILATED,
        **AUXILIARY,
        "model.decode_head.in_channels": 512,
        "model.decode_head.c1_in_channels": 64,
    },
    "upernet/upernet_r50_4xb2-40k_cityscapes-512x1024": {
        **AUXILIARY,
        "model.decode_head.in_channels": WIDTHS,
    },
    "segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024": {
        "model.decode_head.in_channels": WIDTHS,
    },
}


@functools.lru_cache
def segmentor(name: str) -> nn.Module:
    return build_model(read_config(str(FOLDER / f"{name}{SUFFIX}.py"))[0])


def test_every_config_is_counted() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {name + SUFFIX for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    parameters = sum(each.numel() for each in segmentor(name).parameters() if each.requires_grad)
    assert parameters == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_are_the_published_ones(name: str) -> None:
    """Counted on a 64th and a 16th of the pixels; only UPerNet's pooled maps have a fixed cost.

    mmcv 1 counted no synchronized batch norms, so the published figures are lower.
    """
    small, large = (
        count_flops(segmentor(name), torch.zeros(1, 3, *size))[""].published
        for size in ((128, 256), (256, 512))
    )
    per_step, remainder = divmod(large - small, 3)
    flops = small + 63 * per_step
    assert remainder == 0
    assert flops / 1e9 == pytest.approx(PUBLISHED[name][1], rel=0.005)
    metafile = yaml.safe_load((FOLDER / "metafile.yml").read_text())
    [entry] = [each for each in metafile["Models"] if each["Name"] == name + SUFFIX]
    assert entry["Metadata"]["Parameters"] == PUBLISHED[name][0]
    assert entry["Metadata"]["FLOPs"] == flops


@pytest.mark.parametrize("name", PUBLISHED)
def test_involutions_are_where_the_name_says(name: str) -> None:
    model: Any = segmentor(name)
    assert model.backbone.stem[1].kernel_size == (7, 7)
    neck = model.neck.named_modules() if model.with_neck else ()
    found = [key for key, each in neck if isinstance(each, Involution2d)]
    levels = range(4) if "invneck" in name else ()
    assert found == [f"fpn_convs.{level}.conv" for level in levels]


def demo() -> Any:
    return build_model(read_config(DEMO)[0])


def losses(model: Any, sizes: list[tuple[int, int]], label: int | None = None) -> torch.Tensor:
    batch = random_batch("mmseg", sizes)
    for sample in batch["data_samples"] if label is not None else ():
        sample.gt_sem_seg.data.fill_(label)
    data = model.data_preprocessor(batch, True)
    return model.parse_losses(model(**data, mode="loss"))[0]


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_config_takes_rednet_by_cfg_options(name: str) -> None:
    """A training step gives every parameter a gradient, and inference keeps an odd size."""
    path = Path(mmseg.__file__).parent / ".mim/configs" / f"{name}.py"
    narrow = {"model.decode_head.channels": 32, "model.data_preprocessor.size": (65, 97)}
    config, _ = read_config(str(path), {**REDNET, **STOCK[name], **narrow})
    model: Any = build_model(config)
    assert type(model.backbone).__name__ == "RedNet"
    if "d8" in name:
        assert model.backbone.layer4[0].conv2.dilation == (4, 4)
    loss = losses(model.train(), [(65, 97)] * 2)
    loss.backward()
    assert loss.isfinite()
    assert [key for key, each in model.named_parameters() if each.grad is None] == []
    model.eval().test_cfg = ConfigDict(mode="whole")
    with torch.no_grad():
        [sample] = model.test_step(random_batch("mmseg", [(65, 97)]))
    assert sample.pred_sem_seg.data.shape == (1, 65, 97)


def test_a_pretrained_that_the_backbone_does_not_accept_is_one_line() -> None:
    path = Path(mmseg.__file__).parent / ".mim/configs" / f"{next(iter(STOCK))}.py"
    options = {key: value for key, value in REDNET.items() if key != "model.pretrained"}
    with pytest.raises(UserError, match=r"model.pretrained='open-mmlab.*not an argument of RedNet"):
        build_model(read_config(str(path), options)[0])


@pytest.mark.parametrize("sizes", [[(65, 97)] * 2, [(64, 40), (33, 90)], [(1, 80)] * 2])
def test_training_on_images_of_any_size(sizes: list[tuple[int, int]]) -> None:
    loss = losses(demo().train(), sizes)
    loss.backward()
    assert loss.isfinite()


def test_ignored_pixels_do_not_change_the_loss() -> None:
    """Images without annotated pixels give a loss of zero, and finite gradients."""
    model = demo().train()
    loss = losses(model, [(64, 64)] * 2, label=255)
    loss.backward()
    assert loss.item() == 0
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


def test_images_of_one_class_are_learned() -> None:
    model = demo().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = losses(model, [(64, 64)] * 2, label=0)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0]


@pytest.mark.parametrize("size", [(65, 97), (64, 64), (31, 130), (1, 1)])
def test_sliding_windows_cover_an_image_of_any_size(size: tuple[int, int]) -> None:
    model = demo().eval()
    model.test_cfg = ConfigDict(mode="slide", crop_size=(64, 64), stride=(48, 48))
    with torch.no_grad():
        [sample] = model.test_step(random_batch("mmseg", [size]))
    assert sample.pred_sem_seg.data.shape == (1, *size)
    assert sample.seg_logits.data.isfinite().all()


def test_one_window_over_the_whole_image_is_whole_inference() -> None:
    model = demo().eval()
    batch = random_batch("mmseg", [(64, 64)])
    logits = []
    for mode in (dict(mode="whole"), dict(mode="slide", crop_size=(64, 64), stride=(48, 48))):
        model.test_cfg = ConfigDict(mode)
        with torch.no_grad():
            logits.append(model.test_step(batch)[0].seg_logits.data)
    torch.testing.assert_close(logits[0], logits[1])


def test_without_mmseg_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mmseg" else find(name)
    )
    with pytest.raises(MissingDependencyError, match="pip install mmsegmentation"):
        check_scope("mmseg")


def test_published_weights_of_a_segmentor_fit_after_conversion() -> None:
    """Keys of mmseg 0.x: in the neck, the involution has the ConvModule's place."""
    from rednet.checkpoint.published import convert

    state = segmentor("fpn_rednet50-invneck").state_dict()
    published = {
        key.replace(".conv.conv", ".conv") if key.startswith("neck.fpn_convs") else key: value
        for key, value in state.items()
    }
    assert published.keys() != state.keys()
    config = Config.fromfile(FOLDER / f"fpn_rednet50-invneck{SUFFIX}.py")

    def build(stem_kernel_size: int | None) -> nn.Module:
        assert stem_kernel_size == 7
        with DefaultScope.overwrite_default_scope("mmseg"):
            return MODELS.build(config.model)

    result = convert(published, build)
    assert result.state_dict.keys() == state.keys()
    assert not result.refused and not result.missing and len(result.renamed) == 4 * 8
