from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import rednet
from rednet.errors import ArgumentError
from rednet.layers import ACBlock, ConvAWS2d, Involution2d

INVOLUTION = dict(type="Involution2d", kernel_size=7, bias=False)


class Pyramid(nn.Module):
    """Looks like a neck of ConvModules that a detector injects keywords into."""

    def __init__(
        self, channels: int = 16, num_classes: int = 1, train_cfg: dict | None = None
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvModule(channels, channels, 1) for _ in range(2))
        self.outputs = nn.ModuleList(ConvModule(channels, channels, 3, padding=1) for _ in range(2))
        self.down = ConvModule(channels, channels, 3, stride=2, padding=1)
        self.injected = (num_classes, train_cfg)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for lateral, output in zip(self.laterals, self.outputs, strict=True):
            image = output(lateral(image))
        return self.down(image)


@pytest.fixture(autouse=True)
def _register_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._module_dict, "Pyramid", Pyramid)


def _build(**changes: object) -> nn.Module:
    config = dict(
        type="SwapConv",
        module=dict(type="Pyramid"),
        conv_cfg=INVOLUTION,
        include=r"^outputs\.\d+\.conv$",
    )
    return MODELS.build({**config, **changes})


def _swapped(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, Involution2d)]


def test_matching_convolutions_are_replaced_and_the_module_is_returned() -> None:
    neck = _build()
    assert type(neck) is Pyramid
    assert _swapped(neck) == ["outputs.0.conv", "outputs.1.conv"]
    assert neck.outputs[0].conv.kernel_size == (7, 7)
    assert neck.outputs[0].conv.padding == (3, 3)
    assert neck(torch.randn(2, 16, 9, 9)).shape == Pyramid()(torch.randn(2, 16, 9, 9)).shape


def test_exclude_and_several_patterns() -> None:
    neck = _build(include=["outputs", "down"], exclude=r"outputs\.0")
    assert _swapped(neck) == ["outputs.1.conv", "down.conv"]
    assert neck.down.conv.stride == (2, 2)
    with pytest.raises(ValueError, match="include='' with exclude='' matches no convolution"):
        _build(include="", exclude="")


def test_injected_keywords_reach_the_inner_config() -> None:
    inner = dict(type="Pyramid", num_classes=3)
    neck = _build(module=inner, num_classes=5, train_cfg=dict(a=1))
    assert neck.injected == (5, dict(a=1))
    assert inner == dict(type="Pyramid", num_classes=3)


def test_geometry_is_kept_unless_overridden() -> None:
    convolution = nn.Conv2d(4, 8, (3, 5), 2, (1, 2), 1, 2, False, "reflect")
    layer = rednet.swap_conv(convolution, dict(type="ConvAWS2d"))
    assert isinstance(layer, ConvAWS2d)
    for name in ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]:
        assert getattr(layer, name) == getattr(convolution, name), name
    assert layer.bias is None
    assert rednet.swap_conv(convolution, dict(type="ConvAWS2d", bias=True)).bias is not None


@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 1), (1, 1), (3, 4), ((5, 3), 2)])
def test_the_padding_follows_kernel_size_and_dilation(kernel_size: object, dilation: int) -> None:
    convolution = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    cfg = dict(type="Involution2d", kernel_size=kernel_size, dilation=dilation)
    layer = rednet.swap_conv(convolution, cfg)
    image = torch.randn(1, 16, 10, 13)
    assert layer(image).shape == convolution(image).shape


def test_an_impossible_padding_asks_for_one() -> None:
    with pytest.raises(ValueError, match=r"outputs\.0\.conv: no padding keeps .* give the padding"):
        _build(conv_cfg=dict(type="Involution2d", kernel_size=4))
    assert _build(conv_cfg=dict(type="Involution2d", kernel_size=4, padding=2))


def test_a_layers_own_error_names_the_convolution() -> None:
    with pytest.raises(ValueError, match=r"outputs\.0\.conv: out_channels must be a multiple"):
        _build(conv_cfg=dict(type="Involution2d", group_channels=5))


def test_a_pattern_that_matches_nothing_lists_what_it_could_have() -> None:
    with pytest.raises(
        ValueError, match=r"include='fpn'.* of Pyramid; .*laterals\.0\.conv, .*down"
    ):
        _build(include="fpn")
    with pytest.raises(ValueError, match="it has no nn.Conv2d"):
        rednet.swap_conv(nn.ReLU(), INVOLUTION)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(conv_cfg="Involution2d"), TypeError, "conv_cfg must be a dict with the key 'type'"),
        (dict(conv_cfg=dict(kernel_size=3)), TypeError, "conv_cfg must be a dict with the key"),
        (dict(conv_cfg=dict(type="None2d")), ValueError, "no layer is registered as 'None2d'"),
        (dict(module="FPN"), TypeError, "module must be a config dict with the key 'type'"),
        (dict(include="("), ValueError, "include must be a regular expression or several, got"),
        (dict(exclude=3), ValueError, "exclude must be a regular expression or several, got 3"),
    ],
)
def test_bad_arguments_are_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _build(**changes)


def test_only_modules_that_are_not_wrapped_yet_are_changed() -> None:
    with pytest.raises(TypeError, match="module must be an nn.Module, got list"):
        rednet.swap_conv([nn.Conv2d(8, 8, 3)], dict(type="ConvAWS2d"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(8, 8, 3)))
        with pytest.raises(ValueError, match="swap the convolutions before wrapping"):
            rednet.swap_conv(wrapped, dict(type="ConvAWS2d"))
    finally:
        dist.destroy_process_group()


def test_convolutions_inside_own_layers_are_left_alone() -> None:
    neck = rednet.swap_conv(_build(), dict(type="ConvAWS2d"))
    assert isinstance(neck.outputs[0].conv, Involution2d)
    assert isinstance(neck.outputs[0].conv.conv1.conv, nn.Conv2d)
    assert isinstance(neck.down.conv, ConvAWS2d)


def test_a_swapped_config_is_swapped_again(caplog: pytest.LogCaptureFixture) -> None:
    inner = dict(
        type="SwapConv",
        module=dict(type="Pyramid"),
        conv_cfg=dict(type="ACBlock"),
        include="laterals",
    )
    neck = _build(module=inner, num_classes=7, train_cfg=None)
    assert [type(each.conv) for each in neck.laterals] == [ACBlock, ACBlock]
    assert _swapped(neck) == ["outputs.0.conv", "outputs.1.conv"]
    assert neck.injected == (7, None)
    logger = MMLogger.get_instance("swapped-again")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        neck.load_state_dict(Pyramid().state_dict(), strict=False)
    assert len([line for line in caplog.messages if "2 convolutions expanded" in line]) == 1


def test_only_convolutions_of_images_are_replaced() -> None:
    others = [nn.ConvTranspose2d(16, 16, 3), nn.Conv1d(16, 16, 3), nn.Linear(16, 16)]
    module = nn.Sequential(*others, nn.Conv2d(16, 16, 3, padding=1))
    assert _swapped(rednet.swap_conv(module, INVOLUTION)) == ["3"]
    assert list(module[:3]) == others
    with pytest.raises(ValueError, match="it could have matched: 1$"):
        rednet.swap_conv(nn.Sequential(others[0], nn.Conv2d(16, 16, 3)), INVOLUTION, "^0$")


@pytest.mark.parametrize("layer", ["ACBlock", "CondConv2d", "ConvAWS2d", "ODConv2d", "SAConv2d"])
def test_depthwise_convolutions_are_replaced_with_their_weights(layer: str) -> None:
    convolution, image = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), torch.randn(2, 8, 7, 7)
    swapped = rednet.swap_conv(convolution, dict(type=layer), copy_weights=True).eval()
    torch.testing.assert_close(swapped(image), convolution(image))


def test_a_layer_that_cannot_be_depthwise_says_so_and_changes_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(ValueError, match="^1: groups must be 1, got 8"):
        rednet.swap_conv(module, dict(type="SPConv2d"))
    assert type(module[0]) is nn.Conv2d


def test_a_shared_convolution_stays_shared() -> None:
    module = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1)])
    module.append(module[0])
    rednet.swap_conv(module, INVOLUTION)
    assert isinstance(module[0], Involution2d) and module[0] is module[1]


def test_dtype_mode_and_frozen_parameters_carry_over() -> None:
    convolution = nn.Conv2d(16, 16, 3, padding=1).double().eval().requires_grad_(False)
    layer = rednet.swap_conv(convolution, INVOLUTION)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert not layer.training
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_copied_weights_compute_what_the_convolution_computed() -> None:
    convolution, image = nn.Conv2d(4, 8, 3), torch.randn(1, 4, 6, 6)
    layer = rednet.swap_conv(convolution, dict(type="ConvAWS2d"), copy_weights=True)
    torch.testing.assert_close(layer(image), convolution(image))
    fresh = rednet.swap_conv(convolution, dict(type="ConvAWS2d"))
    assert not torch.allclose(fresh(image), convolution(image))


class Backbone(BaseModule):
    """Initializes all convolutions alike, those inside other layers too, as ResNets do."""

    def __init__(self, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg or dict(type="Kaiming", layer="Conv2d"))
        self.stages = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))


@pytest.mark.parametrize("copied", [False, True])
def test_an_init_cfg_does_not_fill_what_has_to_start_at_zero(copied: bool) -> None:
    backbone = rednet.swap_conv(Backbone(), dict(type="SAConv2d"))
    backbone = copy.deepcopy(backbone) if copied else backbone
    backbone.init_weights()
    layer = backbone.stages[0]
    assert (layer.switch.weight == 0).all() and (layer.switch.bias == 1).all()
    assert (layer.post_context.weight == 0).all() and (layer.weight != 0).any()


def test_initialization_keeps_what_a_checkpoint_gave(tmp_path: Path) -> None:
    given = rednet.swap_conv(Backbone(), dict(type="SAConv2d"))
    nn.init.constant_(given.stages[0].switch.weight, 3)
    torch.save(given.state_dict(), tmp_path / "given.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "given.pth"))
    backbone = rednet.swap_conv(Backbone(pretrained), dict(type="SAConv2d"))
    backbone.init_weights()
    assert (backbone.stages[0].switch.weight == 3).all()


class Classifier(BaseModule):
    """A backbone with initialization of its own, and a head without."""

    def __init__(self, init_cfg: dict | list | None = None) -> None:
        super().__init__()
        self.backbone = Backbone(init_cfg)
        self.head = nn.Conv2d(8, 8, 1)


@pytest.mark.parametrize("as_list", [False, True])
def test_initialization_of_a_whole_model_keeps_what_a_part_loads(
    tmp_path: Path, as_list: bool
) -> None:
    plain, image = Backbone().stages, torch.randn(1, 8, 5, 5)
    state = {f"stages.{key}": value for key, value in plain.state_dict().items()}
    torch.save(state, tmp_path / "plain.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"))
    model = Classifier([pretrained] if as_list else pretrained)
    rednet.swap_conv(model, dict(type="SAConv2d"))
    nn.init.constant_(model.head.switch.weight, 3)
    model.init_weights()
    torch.testing.assert_close(model.backbone.stages(image), plain(image))
    assert not model.head.switch.weight.any()


def test_initialization_of_a_whole_model_keeps_what_a_part_has_initialized() -> None:
    model = rednet.swap_conv(Classifier(), dict(type="SAConv2d"))
    model.backbone.init_weights()
    weight = model.backbone.stages[0].weight.clone()
    model.init_weights()
    assert torch.equal(model.backbone.stages[0].weight, weight)


def test_a_swapped_module_is_copied_and_pickled() -> None:
    neck, image = _build().eval(), torch.randn(1, 16, 5, 5)
    for twin in (copy.deepcopy(neck), pickle.loads(pickle.dumps(neck))):
        twin.load_state_dict(neck.state_dict())
        assert torch.equal(twin(image), neck(image))


def test_parts_of_stock_detectors_are_built_in_their_scope() -> None:
    pytest.importorskip("mmdet", reason="stock necks and heads need mmdet")
    import mmdet.models  # noqa: F401

    fpn = dict(type="FPN", in_channels=[16, 32], out_channels=16, num_outs=3)
    with DefaultScope.overwrite_default_scope("mmdet"):
        neck = _build(module=fpn, include=r"^fpn_convs\.\d+\.conv$")
    maps = neck((torch.randn(1, 16, 9, 9), torch.randn(1, 32, 5, 5)))
    assert [map.shape[2:] for map in maps] == [(9, 9), (5, 5), (3, 3)]
    assert _swapped(neck) == ["fpn_convs.0.conv", "fpn_convs.1.conv"]


def test_a_type_of_one_library_is_found_without_a_default_scope() -> None:
    pytest.importorskip("mmpretrain.models")
    inner = dict(type="SEResNet", depth=50)
    built = MODELS.build(
        dict(
            type="SwapConv", module=inner, conv_cfg=dict(type="ODConv2d"), include="layer1.0.conv2"
        )
    )
    assert type(built).__name__ == "SEResNet"


@pytest.mark.parametrize("library", ["mmdet", "mmpretrain"])
def test_a_type_of_several_libraries_is_that_of_the_building_registry(library: str) -> None:
    for each in ("mmdet", "mmpretrain"):
        pytest.importorskip(f"{each}.models")
    config = dict(
        type="SwapConv",
        module=dict(type="ResNet", depth=18),
        conv_cfg=dict(type="ODConv2d"),
        include="layer1.0.conv2",
    )
    registry = MODELS.children[library]
    assert type(registry.build(config)).__module__.startswith(f"{library}.")
    with pytest.raises(ArgumentError, match="several libraries: write 'mm.*.ResNet' or 'mm.*.Re"):
        MODELS.build(config)


NEW_STYLE = """
from mmdet.models import FPN

from rednet.layers import Involution2d
from rednet.models import SwapConv

default_scope = None
neck = dict(
    type=SwapConv,
    module=dict(type=FPN, in_channels=[16, 32], out_channels=16, num_outs=2),
    conv_cfg=dict(type=Involution2d, kernel_size=3, bias=False),
    include=r"^fpn_convs\\.\\d+\\.conv$",
)
"""


def test_a_new_style_config_imports_it_and_survives_a_dump(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    (tmp_path / "new_style.py").write_text(NEW_STYLE)
    config = Config.fromfile(tmp_path / "new_style.py", lazy_import=True)
    config.dump(tmp_path / "dumped.py")
    for file in ("new_style.py", "dumped.py"):
        neck = MODELS.build(Config.fromfile(tmp_path / file).neck)
        assert isinstance(neck.fpn_convs[0].conv, Involution2d)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_swapped_model_have_the_strides_of_their_parameters(
    format: torch.memory_format,
) -> None:
    """Of its own 1 x 1 convolutions too: DistributedDataParallel warns where they have not."""
    model = rednet.swap_conv(Pyramid(), dict(type="DynamicConv2d"), include="outputs").to(
        memory_format=format
    )
    image = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    model(image).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
