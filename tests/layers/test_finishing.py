from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from rednet.layers import Involution2d
from rednet.layers.finishing import finish, finish_module, may_finish
from rednet.models.bottleneck import Bottleneck
from rednet.models.rednet import _pooled_stem
from rednet.ops.cpu import loader, pointwise
from tests.ops.cases import BUILD_NAMES, BUILDS

Finished = Callable[[], int]


def _used(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The norm with numbers as a training leaves them, in eval mode."""
    for tensor, low in ((norm.running_mean, -1), (norm.running_var, 0.5)):
        tensor.uniform_(low, low + 2)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    return norm.eval()


def _map(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    map = torch.randn(2, channels, 5, 7, dtype=dtype)
    return map.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Counts the maps that a kernel has finished, after a convolution or together with it."""
    calls: list[str] = []
    call = loader.call

    def count(name: str, *arguments: Any) -> None:
        if name in ("finish", "pointwise"):
            calls.append(name)
        call(name, *arguments)

    monkeypatch.setattr(loader, "call", count)
    return lambda: len(calls)


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 6, 16, 35])
def test_every_instruction_set_is_right(
    build: Path, dtype: torch.dtype, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    map, addend = _map(channels, dtype), _map(channels, dtype)
    map[0, 0, 0, 0] = torch.nan
    norm = _used(nn.BatchNorm2d(channels, dtype=dtype, affine=channels != 6))
    with torch.no_grad():
        normed = norm(map)
        cases = {
            (norm, None, None): normed,
            (norm, nn.ReLU(), None): normed.relu(),
            (norm, nn.ReLU(), addend): (normed + addend).relu(),
            (None, nn.ReLU(), addend): (map + addend).relu(),
        }
        for arguments, expected in cases.items():
            actual = finish(nn.Identity(), map, *arguments)
            torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")
def test_only_the_output_of_a_convolution_is_overwritten(finished: Finished) -> None:
    map, norm = _map(16), _used(nn.BatchNorm2d(16))
    before = map.clone()
    kept: list[Tensor] = []
    convolution = nn.Conv2d(16, 16, 1)
    with torch.no_grad():
        finish(nn.Identity(), map, norm, nn.ReLU())
        convolution.register_forward_hook(lambda _, __, output: kept.append(output))
        finish(convolution, map, norm, nn.ReLU())
        assert finished() == 2
        assert torch.equal(map, before)
        assert torch.equal(kept[0], F.conv2d(map, convolution.weight, convolution.bias))


@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        (nn.BatchNorm2d(16).train(), nn.ReLU()),
        (nn.BatchNorm2d(16, track_running_stats=False).eval(), nn.ReLU()),
        (nn.GroupNorm(4, 16), nn.ReLU()),
        (nn.BatchNorm2d(16).eval(), nn.GELU()),
    ],
    ids=["training", "no statistics", "group norm", "GELU"],
)
def test_other_modules_are_called(
    norm: nn.Module, activation: nn.Module, finished: Finished
) -> None:
    map = _map(16)
    with torch.no_grad():
        output = finish(nn.Identity(), map, norm, activation, map)
        torch.testing.assert_close(output, activation(norm(map) + map))
        finish(nn.Identity(), map.contiguous(), nn.BatchNorm2d(16).eval(), nn.ReLU())
    assert finished() == 0


def test_nothing_is_finished_where_something_follows() -> None:
    map = _map(4)
    answers: list[bool] = []

    def ask(input: Tensor) -> Tensor:
        answers.append(may_finish(input))
        return input + 1

    with torch.no_grad():
        assert may_finish(map)
        torch.jit.trace(ask, map, check_trace=False)  # the check runs untraced
        torch.vmap(ask)(map)
        with BaseTorchFunctionMode():
            ask(map)
        assert not may_finish(map.to("meta"))
        assert not may_finish(nn.Parameter(map))
    assert not may_finish(map)
    assert answers and not any(answers)


def _bottleneck(**changes: object) -> Bottleneck:
    block = Bottleneck(64, 16, kernel_size=3, **changes)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            _used(module)
    return block.eval()


@pytest.mark.parametrize(
    "changes",
    [{}, dict(stride=2), dict(stride=2, avg_down=True), dict(drop_path_rate=0.5)],
    ids=str,
)
def test_a_block_computes_the_same_without_gradients(changes: dict, finished: Finished) -> None:
    block, map = _bottleneck(**changes), _map(64)
    expected = block(map)
    assert finished() == 0
    with torch.no_grad():
        torch.testing.assert_close(block(map), expected)
    maps = 4 - ("drop_path_rate" in changes) + ("stride" in changes)
    assert finished() == (maps if BUILDS else 0)


def test_autocast_gives_the_same_dtype_without_gradients() -> None:
    block, map = _bottleneck(), _map(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = block(map).dtype
        with torch.no_grad():
            assert block(map).dtype == expected


@pytest.mark.parametrize("name", ["bn1", "bn2", "bn3", "relu", "conv2.conv1", "conv2"])
def test_a_hook_sees_what_its_module_gives(name: str) -> None:
    block, map = _bottleneck(), _map(64)
    seen: list[Tensor] = []
    block.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output))
    block(map)
    expected, seen[:] = [each.detach() for each in seen], []
    with torch.no_grad():
        block(map)
    assert len(seen) == len(expected)
    for actual, exact in zip(seen, expected, strict=True):
        torch.testing.assert_close(actual, exact)


@pytest.mark.parametrize(
    "options",
    [
        dict(norm_cfg=dict(type="BN")),
        dict(norm_cfg=None),
        dict(norm_cfg=None, act_cfg=None),
        dict(norm_cfg=dict(type="BN"), order=("norm", "conv", "act")),
        dict(norm_cfg=dict(type="BN"), padding=1, padding_mode="circular"),
    ],
    ids=str,
)
def test_conv_modules_of_every_kind(options: dict) -> None:
    module, map = ConvModule(16, 16, 3, **options), _map(16)
    if module.with_norm:
        _used(module.norm)
    with torch.no_grad():
        expected = module.eval()(map.clone())
        torch.testing.assert_close(finish_module(module, map.clone()), expected)


def test_an_involution_computes_the_same_without_gradients(finished: Finished) -> None:
    layer, map = Involution2d(16, 16, 3, padding=1), _map(16)
    _used(layer.conv1.norm)
    expected = layer(map)
    with torch.no_grad():
        torch.testing.assert_close(layer(map), expected)
    assert finished() == (1 if BUILDS else 0)


def test_views_that_are_lazily_negated() -> None:
    block, layer, map = _bottleneck(), Involution2d(64, 64, 3, padding=1), _map(64)
    with torch.no_grad():
        for module in (block, layer.eval()):
            actual = module(torch._neg_view(map))
            torch.testing.assert_close(actual, module(-map))


@pytest.mark.parametrize("modules", [[], [nn.Conv2d(64, 64, 1)], [nn.ReLU(), nn.ReLU(), nn.ReLU()]])
def test_shortcuts_and_stems_of_other_lengths(modules: list[nn.Module]) -> None:
    block, map = _bottleneck(), _map(64)
    replaced = block.downsample = nn.Sequential(*modules)
    expected = block(map)
    with torch.no_grad():
        torch.testing.assert_close(block(map), expected)
        stem = _pooled_stem(replaced, nn.Identity(), map)
        torch.testing.assert_close(stem, replaced(map))


@pytest.mark.parametrize("name", ["conv2", "conv2.conv"])
def test_generators_of_another_kind(name: str) -> None:
    layer, map = Involution2d(16, 16, 3, padding=1), _map(16)
    replacement = {
        "conv2": ConvModule(4, 9, 1, norm_cfg=dict(type="BN"), act_cfg=None),
        "conv2.conv": nn.Conv2d(4, 9, 3, padding=1),
    }
    parent = layer if name == "conv2" else layer.conv2
    setattr(parent, name.rpartition(".")[2], replacement[name])
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            _used(module)
    expected = layer.eval()(map)
    with torch.no_grad():
        torch.testing.assert_close(layer(map), expected)


@pytest.fixture
def convolved(monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Counts the 1 x 1 convolutions that the kernel has computed."""
    calls = []
    kernel = pointwise.convolve
    monkeypatch.setattr(
        pointwise, "convolve", lambda *operands: (calls.append(1), kernel(*operands))[1]
    )
    return lambda: len(calls)


needs_products = pytest.mark.skipif(
    not loader.multiplies_fast(), reason="PyTorch's 1 x 1 convolutions are faster here"
)


@needs_products
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_block_of_products(stride: int, dtype: torch.dtype, convolved: Finished) -> None:
    block, map = _bottleneck(stride=stride).to(dtype), _map(64, dtype)
    expected = copy.deepcopy(block).double()(map.double())
    with torch.no_grad():
        torch.testing.assert_close(block(map), expected.to(dtype))
    # The involution's is one of them.
    assert convolved() == 3 + (stride == 2)


@needs_products
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 40, 1, stride=(2, 3), bias=False),
        nn.Conv2d(16, 16, 1, dilation=2, padding_mode="circular"),
    ],
    ids=str,
)
def test_convolutions_that_are_products(convolution: nn.Conv2d, convolved: Finished) -> None:
    map, norm = _map(16), _used(nn.BatchNorm2d(convolution.out_channels))
    with torch.no_grad():
        expected = norm(convolution(map)).relu()
        torch.testing.assert_close(finish(convolution, map, norm, nn.ReLU()), expected)
    assert convolved() == 1


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 16, 1, padding=1),
        nn.Conv2d(16, 16, 1, padding="same"),
        nn.Conv2d(16, 16, 1, groups=2),
        nn.Conv2d(16, 16, (1, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)),
    ],
    ids=str,
)
def test_other_convolutions_are_called(convolution: nn.Module, convolved: Finished) -> None:
    map, norm = _map(16), _used(nn.BatchNorm2d(16))
    with torch.no_grad():
        expected = norm(convolution(map)).relu()
        torch.testing.assert_close(finish(convolution, map, norm, nn.ReLU()), expected)
    assert convolved() == 0


def test_a_convolution_of_other_channels_is_refused() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        finish(nn.Conv2d(8, 16, 1), _map(16), None, None)


def test_norms_and_addends_of_other_shapes_are_not_read() -> None:
    map, convolution = _map(16), nn.Conv2d(16, 16, 1)
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            finish(convolution, map, nn.BatchNorm2d(8).eval(), nn.ReLU())
        expected = convolution(map) + map[:1]
        torch.testing.assert_close(finish(convolution, map, None, None, map[:1]), expected)


@needs_products
def test_weights_that_change(convolved: Finished) -> None:
    map, convolution, other = _map(16), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
    with torch.no_grad():
        finish(convolution, map, None, nn.ReLU())
        convolution.load_state_dict(other.state_dict())
        output = finish(convolution, map, None, nn.ReLU())
        torch.testing.assert_close(output, other(map).relu())
        convolution.weight.mul_(2)
        output = finish(copy.deepcopy(convolution), map, None, None)
        torch.testing.assert_close(output, convolution(map))
    assert convolved() == 3


def test_products_under_autocast(convolved: Finished) -> None:
    map, convolution = _map(16), nn.Conv2d(16, 16, 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = finish(convolution, map, None, nn.ReLU())
        assert torch.equal(output, convolution(map).relu())
    assert convolved() == 0


@needs_products
def test_a_profile_lists_products() -> None:
    map, convolution = _map(16), nn.Conv2d(16, 16, 1)
    with torch.no_grad(), torch.profiler.profile() as profile:
        finish(convolution, map, None, nn.ReLU())
    assert "rednet::pointwise" in {event.key for event in profile.key_averages()}
