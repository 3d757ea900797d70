from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from rednet.checkpoint.published import convert
from rednet.checkpoint.reading import read_state_dict
from rednet.checkpoint.renaming import torchvision_name
from rednet.cli.model import build_with_stem
from rednet.errors import UserError
from rednet.models import RedNet
from tests.checkpoint.published_shapes import (
    backbone,
    classifier,
    mask_rcnn,
    prefixed,
    retinanet,
    segmentor,
    tensors,
)

ROOT = Path(__file__).resolve().parents[2]


def config(name: str) -> Config:
    pytest.importorskip("mmdet" if "detection" in name else "mmpretrain")
    return Config.fromfile(ROOT / "configs" / name)


@pytest.mark.parametrize("depth", [26, 50])
def test_a_published_classifier_is_taken_as_it_is(depth: int) -> None:
    state = tensors(classifier(depth))
    result = convert(state, partial(build_with_stem, config(f"rednet{depth}_imagenet.py")))
    assert result.taken == list(state) and not result.renamed
    assert not result.refused and not result.missing
    assert result.stem_kernel_size == 3
    assert set(result.kernel_sizes.values()) == {3, 7}


CONVERTED = {
    "mask-rcnn_rednet50_invfpn-invhead": (mask_rcnn, 8 * 8),
    "retinanet_rednet50_invfpn": (retinanet, 3 * 8),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_published_detector_is_renamed_to_what_the_config_builds(name: str) -> None:
    published, renamed = CONVERTED[name]
    state = tensors(published())
    result = convert(state, partial(build_with_stem, config(f"detection/{name}_1x_coco.py")))
    assert not result.refused and not result.missing
    assert len(result.renamed) == renamed
    assert len(result.renamed) + len(result.taken) == len(state)
    assert result.stem_kernel_size == 7
    new = result.renamed["neck.fpn_convs.0.conv2.conv.bias"]
    assert new == "neck.fpn_convs.0.conv.conv2.conv.bias"
    if "mask" in name:
        new = result.renamed["roi_head.mask_head.convs.3.0.conv1.bn.running_var"]
        assert new == "roi_head.mask_head.convs.3.conv.conv1.bn.running_var"
        assert "rpn_head.rpn_conv.conv1.conv.weight" in result.taken


def test_a_converted_detector_loads_strictly_with_its_values() -> None:
    settings = config("detection/mask-rcnn_rednet50_invfpn-invhead_1x_coco.py")
    state = tensors(mask_rcnn())
    state["neck.fpn_convs.1.conv1.conv.weight"] = torch.rand(64, 256, 1, 1)
    result = convert(state, partial(build_with_stem, settings))
    with torch.device("meta"), MODELS.switch_scope_and_registry("mmdet") as registry:
        model = registry.build(settings.model)
    model.load_state_dict(result.state_dict, strict=True, assign=True)
    expected = state["neck.fpn_convs.1.conv1.conv.weight"]
    assert torch.equal(model.neck.fpn_convs[1].conv.conv1.conv.weight, expected)


def test_a_published_segmentor_is_renamed() -> None:
    result = convert(tensors(segmentor()))
    assert len(result.renamed) == 4 * 8 and not result.refused
    assert result.stem_kernel_size == 7


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_a_backbone_gets_the_prefix_of_one(prefix: str) -> None:
    names = backbone(26, 3)
    result = convert(tensors(prefixed(prefix, names)))
    assert set(result.state_dict) == set(prefixed("backbone.", names))
    assert len(result.renamed) == len(names) and not result.refused


def test_every_entry_is_taken_renamed_or_refused_with_a_reason() -> None:
    state: dict = tensors(mask_rcnn())
    state |= {
        "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
        "ema_backbone_stem": torch.zeros(1),
        "module.rpn_head.rpn_cls.bias": torch.zeros(3),
        "head.epoch": 12,
    }
    result = convert(state)
    assert sorted([*result.taken, *result.renamed, *result.refused]) == sorted(state)
    assert result.refused == {
        "backbone.conv1.weight": "no entry of a RedNet has this name",
        "ema_backbone_stem": "no part of a model that is known has this name",
        "module.rpn_head.rpn_cls.bias": "a second entry for rpn_head.rpn_cls.bias",
        "head.epoch": "not a tensor but int",
    }
    lines = list(result.lines())
    assert len(lines) == len(state) + 2
    assert "refused  head.epoch: not a tensor but int" in lines
    assert "the stem's involution has stem_kernel_size=7" in lines


def test_an_involution_without_a_square_kernel_is_refused_whole() -> None:
    state = tensors(backbone(26, 3))
    state["layer1.0.conv2.conv2.conv.weight"] = torch.zeros(48 * 4, 16, 1, 1)
    result = convert(state)
    assert len(result.refused) == 8
    assert all(name.startswith("layer1.0.conv2.") for name in result.refused)
    assert "odd square" in result.refused["layer1.0.conv2.conv1.conv.weight"]


@pytest.mark.parametrize("part", ["conv1.conv", "conv2.conv"])
@pytest.mark.parametrize("shape", [(), (16,)])
def test_an_involution_whose_weights_are_no_convolutions_is_refused_whole(
    part: str, shape: tuple[int, ...]
) -> None:
    state = tensors(backbone(26, 3))
    state[f"stem.1.{part}.weight"] = torch.zeros(shape)
    result = convert(state)
    assert len(result.refused) == 8 and result.stem_kernel_size is None
    (reason,) = set(result.refused.values())
    assert f"backbone.stem.1.{part}.weight must have" in reason
    assert f"got shape {shape}" in reason


def test_names_and_shapes_that_the_model_has_not_are_refused_and_the_rest_is_missing() -> None:
    state = tensors(classifier(26))
    state["head.fc.weight"] = torch.zeros(10, 2048)
    state["head.extra"] = torch.zeros(1)
    del state["backbone.layer4.0.bn3.bias"]
    result = convert(state, partial(build_with_stem, config("rednet26_imagenet.py")))
    assert set(result.refused) == {"head.fc.weight", "head.extra"}
    assert "(10, 2048)" in result.refused["head.fc.weight"]
    assert "(1000, 2048)" in result.refused["head.fc.weight"]
    assert sorted(result.missing) == ["backbone.layer4.0.bn3.bias", "head.fc.weight"]


# ---- other names and old files


def test_files_without_counts_of_batches_are_completed() -> None:
    state = {k: v for k, v in tensors(classifier(26)).items() if "num_batches_tracked" not in k}
    result = convert(state, partial(build_with_stem, config("rednet26_imagenet.py")))
    assert not result.missing and not result.refused
    assert result.taken == list(state)
    assert len(result.added) == sum(name.endswith("running_mean") for name in state)
    assert all(result.state_dict[name] == 0 for name in result.added)
    assert sum(line.startswith("added ") for line in result.lines()) == len(result.added)


# torchvision's VGG and EfficientNet are built in another way than mmpretrain's. One config of each
# network: building takes long.
VARIANTS = (
    "resnet18_acblock_imagenet",
    "resnet18_dynamicconv_imagenet",
    "resnet18_odconv4x_imagenet",
    "resnet50_saconv_imagenet",
    "resnet50_spconv2_imagenet",
    "mobilenet-v2-x0.5_odconv1x_imagenet",
    "mobilenet-v2_condconv_imagenet",
)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_a_variant_are_taken_under_torchvisions_names(name: str) -> None:
    build = partial(build_with_stem, config(f"variants/{name}.py"))
    model = build(None)
    expected = model.state_dict()
    published = {
        torchvision_names(key): value
        for key, value in expected.items()
        if not key.endswith((".temperature", "num_batches_tracked"))
    }
    result = convert({f"module.{key}": value for key, value in published.items()}, build)
    assert result.state_dict.keys() == expected.keys()
    assert not result.refused and not result.missing
    assert set(result.added) == {
        key for key in expected if key.endswith((".temperature", "num_batches_tracked"))
    }
    for key in result.renamed.values():
        assert result.state_dict[key] is expected[key] or torch.equal(
            result.state_dict[key], expected[key]
        )
    assert all(result.state_dict[k] == 1 for k in result.added if k.endswith("temperature"))


# ODConv's backbones keep their classifier in a detector: of ResNet-50 as ``fc``, of MobileNetV2,
# which has torchvision's names there too, as ``classifier.1``.
ODCONV_DETECTORS = {
    "mask-rcnn_r50-odconv": ("fc", 2048),
    "faster-rcnn_mobilenet-v2-odconv": ("classifier.1", 1280),
}


@pytest.mark.parametrize("name", ODCONV_DETECTORS)
def test_a_detector_of_odconvs_authors_is_converted_without_its_unused_classifier(
    name: str,
) -> None:
    build = partial(build_with_stem, config(f"detection/{name}_fpn_1x_coco.py"))
    expected = {k: v.to("meta") for k, v in build(None).state_dict().items()}
    published = {
        re.sub(r"^(?=(conv1|bn1|layer\d|features)\.)", "backbone.", torchvision_names(key)): value
        for key, value in expected.items()
        if not key.endswith(".temperature")
    }
    assert any("features.18.0.attention" in key for key in published) == ("mobilenet" in name)
    classifier, channels = ODCONV_DETECTORS[name]
    unused = [f"backbone.{classifier}.weight", f"backbone.{classifier}.bias"]
    published |= {unused[0]: torch.empty(1000, channels), unused[1]: torch.empty(1000)}
    result = convert(published, build)
    assert result.unused == unused
    assert not result.refused and not result.missing
    assert result.state_dict.keys() == expected.keys()
    assert sum(line.startswith("unused ") for line in result.lines()) == 2


def torchvision_names(name: str) -> str:
    """torchvision's name of an entry of a network of OpenMMLab's."""
    name = re.sub(r"^head\.fc\.", "fc.", name)
    name = name.removeprefix("backbone.")
    if name.startswith("conv1.conv.") or name.startswith("conv1.bn."):
        return name.replace("conv1.conv", "features.0.0").replace("conv1.bn", "features.0.1")
    if name.startswith("conv2."):
        return name.replace("conv2.conv", "features.18.0", 1).replace("conv2.bn", "features.18.1")
    block = re.match(r"^layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.(.+)$", name)
    if not block:
        return name
    number = [1, 2, 4, 7, 11, 14, 17][int(block[1]) - 1] + int(block[2])
    index, is_norm = int(block[3]), block[4] == "bn"
    last = 1 if number == 1 else 2
    place = f"{index + is_norm}" if index == last else f"{index}.{int(is_norm)}"
    return f"features.{number}.conv.{place}.{block[5]}"


def test_torchvisions_mobilenet_is_renamed_to_mmpretrains() -> None:
    pytest.importorskip("mmpretrain")
    models = pytest.importorskip("torchvision.models")
    from mmpretrain.models import MobileNetV2

    published = models.mobilenet_v2().state_dict()
    ours = {f"backbone.{key}": value for key, value in MobileNetV2().state_dict().items()}
    renamed = {torchvision_name(key): value for key, value in published.items()}
    head = {"head.fc.weight", "head.fc.bias"}
    assert renamed.keys() == ours.keys() | head
    assert all(renamed[key].shape == ours[key].shape for key in ours)


# ---- files


@lru_cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "tool", ROOT / "tools/model_converters/convert_checkpoint.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Path]:
    """A file as mmcls 0.x wrote it: meta data and an optimizer's state beside the weights."""
    path = tmp_path / "published.pth"
    meta = dict(mmcls_version="0.6.0", CLASSES=["a"], hook_msgs={})
    optimizer = dict(state={0: dict(momentum_buffer=torch.zeros(2))}, param_groups=[dict(lr=0.1)])
    content = dict(meta=meta, state_dict=tensors(classifier(26)), optimizer=optimizer)
    torch.save(content, path)
    yield path


def test_the_tool_writes_what_a_detectors_backbone_loads(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mmpretrain")
    output = tmp_path / "ours.pth"
    tool().main(
        [str(published), str(output), "--config", str(ROOT / "configs/rednet26_imagenet.py")]
    )
    printed = capsys.readouterr().out
    assert "taken    head.fc.bias" in printed and "0 refused, 0 missing" in printed
    init_cfg = dict(type="Pretrained", checkpoint=str(output), prefix="backbone.")
    model = RedNet(26, stem_kernel_size=7, frozen_stages=1, init_cfg=init_cfg)
    model.init_weights()
    assert not model.layer1[0].conv1.weight.any() and not model.stem[1].conv2.conv.weight.any()


def test_the_tool_writes_nothing_that_is_refused_unless_told_to(tmp_path: Path) -> None:
    path, output = tmp_path / "in.pth", tmp_path / "new" / "out.pth"
    torch.save(tensors(backbone(26, 3)) | {"unknown": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="1 entries of .* refused.*--partial"):
        tool().main([str(path), str(output)])
    assert not output.exists()
    tool().main([str(path), str(output), "--partial"])
    assert len(read_state_dict(output)) == len(backbone(26, 3))
