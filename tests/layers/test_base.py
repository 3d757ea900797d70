from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from rednet.layers import CondConv2d
from rednet.layers.base import ConvLayer, registered_layers
from rednet.registry import CONV_LAYERS


@pytest.mark.parametrize("kernel_size", [3, 4, (5, 2)])
@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1)])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_pad_and_output_size_agree_with_conv2d(
    kernel_size: object, padding: object, padding_mode: str
) -> None:
    arguments = dict(
        kernel_size=kernel_size, padding=padding, padding_mode=padding_mode, dilation=2
    )
    layer = ConvLayer(1, 1, **arguments)
    convolution = nn.Conv2d(1, 1, bias=False, **arguments)
    image = torch.randn(1, 1, 11, 12)
    padded, rest = layer.pad(image)
    output = nn.functional.conv2d(padded, convolution.weight, None, 1, rest, 2)
    expected = convolution(image)
    torch.testing.assert_close(output, expected)
    assert layer.output_size(11, 12) == tuple(expected.shape[2:])


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 2), (3, 2), (5, 2), ((3, 4), (1, 3))])
@pytest.mark.parametrize("size", [(11, 12), (10, 13)])
def test_adaptive_padding_is_that_of_tensorflow(
    kernel_size: object, stride: object, size: tuple[int, int]
) -> None:
    layer = CondConv2d(2, 3, kernel_size, stride=stride, padding="adaptive").eval()
    plain = nn.Conv2d(2, 3, kernel_size, stride=stride)
    layer.load_state_dict(plain.state_dict())
    image = torch.randn(1, 2, *size)
    amounts = []
    for length, kernel, step in zip(size, layer.kernel_size, layer.stride, strict=True):
        missing = max((-(-length // step) - 1) * step + kernel - length, 0)
        amounts = [missing // 2, missing - missing // 2, *amounts]
    expected = plain(nn.functional.pad(image, amounts))
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)


def test_same_padding_refuses_a_stride() -> None:
    with pytest.raises(ValueError, match=r"padding='same' needs stride 1, got stride=\(2, 2\)"):
        ConvLayer(1, 1, 3, stride=2, padding="same")


def test_channels_are_multiples_of_groups() -> None:
    with pytest.raises(ValueError, match="out_channels must be a multiple of groups=2, got 3"):
        ConvLayer(2, 3, 1, groups=2)


def test_repr_shows_what_is_not_default() -> None:
    text = repr(ConvLayer(2, 4, 3, padding=1, groups=2))
    assert text == "ConvLayer(2, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)"


class _Doubling(ConvLayer):
    """Stores twice the weight of the convolution, and a gain of its own."""

    def __init__(self) -> None:
        super().__init__(2, 4, 3, groups=2)
        self.weight = nn.Parameter(torch.zeros(self.plain_weight_shape))
        self.gain = nn.Parameter(torch.ones(1))

    def adapt_plain_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        adapted = {"weight": 2 * state["weight"]}
        return {**adapted, "bias": state["bias"]} if "bias" in state else adapted


def _plain(**arguments: object) -> nn.Conv2d:
    return nn.Conv2d(
        **{**dict(in_channels=2, out_channels=4, kernel_size=3, groups=2, bias=False), **arguments}
    )


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_state_dict])
def test_a_plain_convolutions_weights_are_adapted(load: Callable) -> None:
    model, plain = nn.ModuleList([_Doubling(), _plain()]), nn.ModuleList([_plain(), _plain()])
    state = plain.state_dict()
    load(model, state, strict=True)
    torch.testing.assert_close(model[0].weight, 2 * plain[0].weight)
    torch.testing.assert_close(model[0].gain, torch.ones(1))
    torch.testing.assert_close(model[1].weight, plain[1].weight)
    assert sorted(state) == ["0.weight", "1.weight"], "the caller's checkpoint was changed"


def test_the_layers_own_weights_are_loaded_as_they_are() -> None:
    state = {"weight": torch.ones(4, 1, 3, 3), "gain": torch.full((1,), 5.0)}
    layer = _Doubling()
    layer.load_state_dict(state, strict=True)
    torch.testing.assert_close(layer.state_dict(), state)


def test_plain_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for weight.*4, 1, 5, 5"):
        _Doubling().load_state_dict(_plain(kernel_size=5).state_dict())
    with pytest.raises(RuntimeError, match='Unexpected key.*"bias"'):
        _Doubling().load_state_dict(_plain(bias=True).state_dict())


def test_a_layer_without_the_convolution_takes_none_of_its_weights() -> None:
    class Other(ConvLayer):
        pass

    result = Other(2, 4, 3, groups=2).load_state_dict(_plain().state_dict(), strict=False)
    assert result.unexpected_keys == ["weight"]


def test_a_layer_is_found_by_being_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = registered_layers()
    monkeypatch.setitem(CONV_LAYERS.module_dict, "Doubling", _Doubling)
    assert registered_layers() == {**before, "Doubling": _Doubling}
    assert list(registered_layers()) == sorted(registered_layers())
    assert "RedNet" not in before and "SwapConv" not in before
