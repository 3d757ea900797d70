"""The contract of design.md's layers, run on every registered convolution layer.

A new layer is tested by being registered: nothing here names one.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from rednet.layers.base import registered_layers
from tests.layers.cases import IN_CHANNELS, OUT_CHANNELS, build, random_geometries, randomized
from tests.tolerances import FLOAT16, assert_close

pytestmark = pytest.mark.parametrize("name", registered_layers())

# nn.Conv2d's attributes that other code reads.
ATTRIBUTES = [
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "transposed",
    "output_padding",
    "padding_mode",
]
# A layer is a chain of several operators, each of which rounds.
CHAIN = 20.0
FORMATS = [torch.contiguous_format, torch.channels_last]


def _image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*(size or (2, IN_CHANNELS, 7, 9)), dtype=dtype)


def _in_double(layer: nn.Module, image: Tensor) -> Tensor:
    return copy.deepcopy(layer).double()(image.double())


def test_constructor_and_attributes_are_conv2ds(name: str) -> None:
    arguments = (IN_CHANNELS, OUT_CHANNELS, (3, 3), (2, 2), (1, 1), (1, 1), 1, False, "zeros")
    layer, convolution = build(name, *arguments), nn.Conv2d(*arguments)
    for attribute in ATTRIBUTES:
        assert getattr(layer, attribute) == getattr(convolution, attribute), attribute


def test_output_shape_is_conv2ds_for_every_geometry(name: str) -> None:
    served = 0
    for geometry in random_geometries(40):
        convolution = nn.Conv2d(IN_CHANNELS, OUT_CHANNELS, **geometry)
        try:
            layer = build(name, IN_CHANNELS, OUT_CHANNELS, **geometry).eval()
        except ValueError as error:
            assert len(str(error)) > 20, f"{geometry} is refused without a reason"
            continue
        for size in ((10, 10), (9, 12)):
            image = _image(2, IN_CHANNELS, *size)
            assert layer(image).shape == convolution(image).shape, (geometry, size)
        served += 1
    assert served >= 3, "refuses nearly every geometry"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8)])
def test_the_usual_geometry_is_served_at_small_and_odd_sizes(
    name: str, stride: int, size: tuple[int, int]
) -> None:
    layer = build(name, IN_CHANNELS, OUT_CHANNELS, 3, stride=stride, padding=1).eval()
    expected = nn.Conv2d(IN_CHANNELS, OUT_CHANNELS, 3, stride=stride, padding=1)
    image = _image(2, IN_CHANNELS, *size)
    assert layer(image).shape == expected(image).shape


@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_gets_a_gradient(name: str, bias: bool) -> None:
    module = ConvModule(
        IN_CHANNELS,
        OUT_CHANNELS,
        3,
        padding=1,
        bias=bias,
        conv_cfg=dict(type=name),
        norm_cfg=dict(type="BN"),
    )
    randomized(module)
    module(_image()).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient: DDP would wait for it"
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("model_format", FORMATS)
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gradients_have_the_strides_of_their_parameters(
    name: str,
    kernel_size: int,
    model_format: torch.memory_format,
    image_format: torch.memory_format,
) -> None:
    """DistributedDataParallel warns and copies where they have not."""
    try:
        layer = build(name, IN_CHANNELS, OUT_CHANNELS, kernel_size, padding=kernel_size // 2)
    except ValueError as error:
        assert kernel_size == 1, error
        return
    layer.to(memory_format=model_format)
    layer(_image().to(memory_format=image_format)).square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), key


def _small(name: str) -> tuple[nn.Module, Tensor]:
    layer = randomized(build(name, IN_CHANNELS, 16, 3, stride=2, padding=1)).double().eval()
    return layer, _image(2, IN_CHANNELS, 3, 3, dtype=torch.float64).requires_grad_()


def test_gradients_of_the_input(name: str) -> None:
    assert torch.autograd.gradcheck(*_small(name), fast_mode=True)


def test_gradients_of_the_parameters(name: str) -> None:
    layer, image = _small(name)
    parameters = dict(layer.named_parameters())

    def output(*values: Tensor) -> Tensor:
        return torch.func.functional_call(
            layer, dict(zip(parameters, values, strict=True)), image.detach()
        )

    assert torch.autograd.gradcheck(output, tuple(parameters.values()), fast_mode=True)


def test_double_backward(name: str) -> None:
    assert torch.autograd.gradgradcheck(*_small(name), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT16, torch.bfloat16], ids=str)
def test_every_dtype_follows_the_float64_result(name: str, dtype: torch.dtype) -> None:
    layer = randomized(build(name)).eval().to(dtype)
    image = _image().to(dtype)
    output = layer(image)
    assert output.dtype == dtype
    assert_close(output, _in_double(layer, image), CHAIN)


def test_autocast_runs_and_follows_float64(name: str) -> None:
    layer, image = randomized(build(name)).eval(), _image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(image)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert_close(output, _in_double(layer, image), CHAIN)


def _channels_last(image: Tensor) -> Tensor:
    return image.to(memory_format=torch.channels_last)


def _sliced(image: Tensor) -> Tensor:
    return torch.stack((image, torch.full_like(image, torch.nan)), dim=-1)[..., 0]


@pytest.mark.parametrize("spread", [_channels_last, _sliced])
@pytest.mark.parametrize("training", [True, False])
def test_any_layout_gives_the_right_answer(
    name: str, training: bool, spread: Callable[[Tensor], Tensor]
) -> None:
    layer = randomized(build(name)).train(training)
    image = _image()
    expected = _in_double(layer, image)
    assert_close(layer(spread(image)), expected, CHAIN)
    if spread is _channels_last:
        layer.to(memory_format=torch.channels_last)
        assert_close(layer(spread(image)), expected, CHAIN)


def test_eval_output_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    layer, image = randomized(build(name)).eval(), _image(5, IN_CHANNELS, 6, 6)
    together = layer(image)
    for index in range(len(image)):
        assert_close(layer(image[index : index + 1]), together[index : index + 1], CHAIN)


def test_an_empty_batch_gives_an_empty_output(name: str) -> None:
    image = torch.ones(0, IN_CHANNELS, 7, 9, requires_grad=True)
    output = build(name).eval()(image)
    output.sum().backward()
    assert output.shape == (0, OUT_CHANNELS, 7, 9)


def test_state_dict_round_trip(name: str) -> None:
    layer, image = randomized(build(name)).eval(), _image()
    fresh = build(name).eval()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)
    assert torch.equal(fresh(image), layer(image))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_copies_compute_the_same(name: str, duplicate: Callable) -> None:
    layer, image = randomized(build(name)).eval(), _image()
    assert torch.equal(duplicate(layer)(image), layer(image))


@pytest.mark.parametrize("bias", [True, False])
def test_plain_weights_make_it_the_convolution_or_change_nothing(name: str, bias: bool) -> None:
    geometry = dict(kernel_size=3, stride=2, padding=1)
    convolution = nn.Conv2d(IN_CHANNELS, OUT_CHANNELS, **geometry, bias=bias)
    layer = randomized(build(name, IN_CHANNELS, OUT_CHANNELS, **geometry)).eval()
    image, plain = _image(), convolution.state_dict()
    if layer.expand_plain_state(plain, prefix="") is None:
        before = layer(image)
        result = layer.load_state_dict({"weight": plain["weight"]}, strict=False)
        assert result.unexpected_keys == ["weight"]
        assert torch.equal(layer(image), before)
        return
    layer.load_state_dict(plain, strict=True)
    assert_close(layer(image), _in_double(convolution, image), CHAIN)


def test_init_weights_leaves_no_parameter_as_it_was(name: str) -> None:
    layer = build(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    layer.init_weights()
    for key, parameter in layer.named_parameters():
        assert parameter.isfinite().all(), key


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_served_or_refused(name: str, mode: str) -> None:
    try:
        layer = build(name, padding_mode=mode)
    except ValueError as error:
        assert "padding_mode" in str(error)
        return
    randomized(layer).eval()
    image = _image()
    image[..., 0, :] += 10
    zeros = build(name).eval()
    zeros.load_state_dict(layer.state_dict())
    output = layer(image)
    assert output.shape == zeros(image).shape
    assert not torch.allclose(output[..., 0, :], zeros(image)[..., 0, :]), "the mode has no effect"


def test_same_padding_keeps_the_size_or_is_refused(name: str) -> None:
    try:
        layer = build(name, IN_CHANNELS, OUT_CHANNELS, 3, padding="same")
    except ValueError as error:
        assert "padding" in str(error)
        return
    assert layer.eval()(_image()).shape[2:] == (7, 9)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_compile_has_no_graph_break(name: str, with_gradient: bool) -> None:
    layer, image = randomized(build(name)).eval(), _image()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(with_gradient):
        assert_close(compiled(image), _in_double(layer, image), CHAIN)


def test_training_through_compile(name: str) -> None:
    layer, image = randomized(build(name)), _image()
    torch.compiler.reset()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(image).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_wrong_input_is_named(name: str) -> None:
    layer = build(name)
    with pytest.raises(ValueError, match=rf"input must have shape \(N, {IN_CHANNELS}, H, W\), got"):
        layer(torch.ones(2, IN_CHANNELS + 1, 5, 5))
    with pytest.raises(ValueError, match="input of 1 x 1 is too small"):
        build(name, IN_CHANNELS, OUT_CHANNELS, 3)(torch.ones(2, IN_CHANNELS, 1, 1))
    with pytest.raises(ValueError, match="input of 5 x 4 is too small"):
        build(name, IN_CHANNELS, OUT_CHANNELS, 3, dilation=2)(torch.ones(2, IN_CHANNELS, 5, 4))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("stride", 0),
        ("padding", -1),
        ("padding", "some"),
        ("dilation", 0),
        ("kernel_size", 0),
        ("groups", 3),
        ("padding_mode", "mirror"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(name: str, argument: str, value: object) -> None:
    arguments = {"kernel_size": 3, argument: value}
    with pytest.raises(ValueError, match=argument) as refusal:
        build(name, IN_CHANNELS, OUT_CHANNELS, **arguments)
    assert str(value) in str(refusal.value)


def test_the_docstring_cites_and_describes(name: str) -> None:
    docstring = registered_layers()[name].__doc__ or ""
    assert "arxiv.org" in docstring and "Args:" in docstring
