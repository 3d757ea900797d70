"""What ODConv2d, CondConv2d and DynamicConv2d have in common."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rednet.layers import CondConv2d, DynamicConv2d, ODConv2d
from rednet.layers.mixture import MixtureConvLayer
from tests.layers.cases import randomized
from tests.tolerances import assert_close

EXPERTS = {ODConv2d: "kernel_num", CondConv2d: "num_experts", DynamicConv2d: "num_kernels"}
GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(3, 2), stride=2, dilation=(1, 2), groups=2, bias=False),
    dict(kernel_size=3, padding=1, groups=8, padding_mode="reflect"),
    dict(kernel_size=1, stride=2),
]

layers = pytest.mark.parametrize("layer_type", EXPERTS)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def _build(layer_type: type[MixtureConvLayer], experts: int = 3, **geometry: Any) -> nn.Module:
    arguments = geometry or {"kernel_size": 3, "padding": 1}
    return layer_type(8, 8, **arguments, **{EXPERTS[layer_type]: experts})


@layers
def test_the_number_of_experts_is_the_first_dimension(layer_type: type) -> None:
    layer = _build(layer_type, 5)
    assert layer.weight.shape == (5, 8, 8, 3, 3)
    with pytest.raises(ValueError, match=f"{EXPERTS[layer_type]} must be at least 1, got 0"):
        _build(layer_type, 0)


@layers
def test_each_expert_is_initialized_as_a_convolution(layer_type: type) -> None:
    layer = layer_type(64, 32, 3, groups=4, **{EXPERTS[layer_type]: 6})
    expected = torch.empty(6, *layer.plain_weight_shape)
    for expert in expected:
        if layer_type is ODConv2d:
            nn.init.kaiming_normal_(expert, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.kaiming_uniform_(expert, a=5**0.5 if layer_type is CondConv2d else 0)
    actual = layer.weight.flatten(1).std(1) / expected.flatten(1).std(1)
    torch.testing.assert_close(actual, torch.ones(6), atol=0.1, rtol=0)
    assert len({expert.sum().item() for expert in layer.weight}) == 6


# ---- temperature


@layers
def test_the_temperature_is_part_of_the_state(layer_type: type) -> None:
    layer, fresh = _build(layer_type), _build(layer_type)
    assert layer.temperature == 1
    layer.set_temperature(7.5)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.temperature == 7.5
    assert "temperature" not in dict(layer.named_parameters())


@layers
@pytest.mark.parametrize("strict", [True, False])
def test_a_published_checkpoint_loads_at_temperature_one(layer_type: type, strict: bool) -> None:
    published = randomized(_build(layer_type)).state_dict()
    del published["temperature"]
    model = nn.Sequential(nn.ReLU(), _build(layer_type))
    model[1].set_temperature(30)
    state = {f"1.{key}": value for key, value in published.items()}
    assert not model.load_state_dict(state, strict=strict).missing_keys
    assert model[1].temperature == 1
    assert set(state) == {f"1.{key}" for key in published}, "the caller's dict was changed"


@layers
def test_a_partial_checkpoint_leaves_the_temperature(layer_type: type) -> None:
    layer = _build(layer_type)
    layer.set_temperature(30)
    assert "weight" in layer.load_state_dict({}, strict=False).missing_keys
    assert layer.temperature == 30


@pytest.mark.parametrize(
    # Sigmoids tend to 1/2 and a softmax to equal shares: of three experts, and of three sigmoids.
    ("layer_type", "factor"),
    [(DynamicConv2d, 1), (CondConv2d, 3 / 2), (ODConv2d, 1 / 8)],
)
def test_in_the_heat_every_image_has_the_average_kernel(layer_type: type, factor: float) -> None:
    layer = randomized(_build(layer_type, kernel_size=3, bias=False)).double().eval()
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    average = F.conv2d(image, layer.weight.mean(0)) * factor
    assert not torch.allclose(layer(image), average, rtol=1e-2)
    layer.set_temperature(1e7)
    torch.testing.assert_close(layer(image), average, rtol=1e-5, atol=1e-6)


@layers
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "temperature must be finite and above 0, got 0"),
        (-1.0, ValueError, "temperature must be finite and above 0, got -1.0"),
        (float("nan"), ValueError, "temperature must be finite and above 0, got nan"),
        ("hot", TypeError, "temperature must be a number, got 'hot'"),
    ],
)
def test_a_bad_temperature_is_named(
    layer_type: type, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _build(layer_type).set_temperature(value)


# ---- a plain convolution's weights


@layers
@geometries
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_plain_weights_give_the_convolutions_output(
    layer_type: type, geometry: dict, experts: int
) -> None:
    convolution = nn.Conv2d(8, 8, **geometry).double()
    layer = _build(layer_type, experts, **geometry).double()
    layer.load_state_dict(convolution.state_dict())
    image = torch.randn(3, 8, 6, 7, dtype=torch.float64)
    for temperature, training in itertools.product((0.3, 1, 30), (True, False)):
        layer.set_temperature(temperature)
        assert_close(layer.train(training)(image), convolution(image))


@layers
def test_plain_weights_without_bias_give_a_bias_of_zero(layer_type: type) -> None:
    convolution = nn.Conv2d(8, 8, 3, bias=False)
    layer = randomized(_build(layer_type))
    layer.load_state_dict(convolution.state_dict())
    assert not layer.bias.any()


@layers
def test_a_plain_bias_without_a_place_is_refused(layer_type: type) -> None:
    with pytest.raises(RuntimeError, match='Unexpected key.*"bias"'):
        _build(layer_type, kernel_size=3, bias=False).load_state_dict(
            nn.Conv2d(8, 8, 3).state_dict()
        )


@layers
def test_plain_weights_may_be_assigned(layer_type: type) -> None:
    layer = _build(layer_type, kernel_size=3)
    layer.load_state_dict(nn.Conv2d(8, 8, 3).state_dict(), assign=True)
    assert all(parameter.is_contiguous() for parameter in layer.parameters())
    layer(torch.randn(2, 8, 5, 5)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@layers
def test_experts_from_plain_weights_part_in_training(layer_type: type) -> None:
    layer = _build(layer_type, 4, kernel_size=3)
    layer.load_state_dict(nn.Conv2d(8, 8, 3).state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(torch.randn(4, 8, 5, 5)).square().mean().backward()
        optimizer.step()
    for one in range(4):
        for other in range(one):
            assert not torch.allclose(layer.weight[one], layer.weight[other])


# ---- where the layers run


@layers
def test_moving_a_model_to_channels_last_leaves_the_experts(layer_type: type) -> None:
    layer = randomized(_build(layer_type)).eval()
    image = torch.randn(2, 8, 6, 7)
    expected = layer(image)
    moved = layer.to(memory_format=torch.channels_last)
    assert moved.weight.is_contiguous()
    output = moved(image.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)


@layers
def test_moving_a_layer_keeps_its_parameters(layer_type: type) -> None:
    layer = _build(layer_type)
    weight = layer.weight
    layer(torch.randn(2, 8, 5, 5)).sum().backward()
    layer.double()
    assert layer.weight is weight, "an optimizer would lose it"
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float64
    assert layer.to("meta").weight.shape == weight.shape


@layers
@geometries
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_layer_serves_other_batch_and_image_sizes(
    layer_type: type, geometry: dict
) -> None:
    layer = randomized(_build(layer_type, **geometry)).eval()
    traced = torch.jit.trace(layer, torch.randn(2, 8, 6, 7), check_trace=False)
    for size in ((2, 8, 6, 7), (1, 8, 6, 7), (5, 8, 9, 8)):
        image = torch.randn(size)
        assert_close(traced(image), layer(image), 5)
