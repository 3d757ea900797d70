from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.expert_conv import (
    Factors,
    Window,
    expert_conv,
    expert_conv2d,
    forms,
    mixing,
    products,
    tiles,
)
from rednet.ops.expert_conv.tiles import Tile
from rednet.ops.geometry import pair
from tests.tolerances import assert_close

GEOMETRIES = [
    dict(size=(3, 3), stride=1, padding=1, dilation=1, groups=1),
    dict(size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
    dict(size=(3, 3), stride=2, padding=1, dilation=2, groups=4),
    dict(size=(1, 1), stride=1, padding=0, dilation=1, groups=1),
    dict(size=(1, 1), stride=(2, 3), padding=0, dilation=1, groups=1),
    dict(size=(1, 1), stride=1, padding=1, dilation=1, groups=2),
    dict(size=(1, 1), stride=2, padding=0, dilation=1, groups=2),
]


@pytest.fixture(params=["plain", "whole", "products", (1, 8), (2, 8), (2, 3)], ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with several numbers of samples and filters that are convolved at a time.

    Their kernels are mixed by the compiled kernel, but for the first.
    """
    if request.param == "plain":
        return
    monkeypatch.setattr(mixing, "_LEAST_WORK", 0)
    monkeypatch.setattr(mixing, "_LEAST_WORK_OF_KERNELS", {8: 0})
    if request.param == "products":
        monkeypatch.setattr(products, "_LEAST_RATIO", 0)
        monkeypatch.setattr(products, "_LEAST_FILTERS_PER_PIXEL", 0)
    if request.param in ("whole", "products"):
        return
    samples, filters = request.param

    def fixed_tile(input: Tensor, experts: Tensor, window: Window, most: int) -> Tile:
        return Tile(samples, filters if window.groups == 1 else experts.shape[1])

    monkeypatch.setattr(expert_conv, "tile_size", fixed_tile)


@pytest.fixture(params=["kernels", "images"])
def folded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the channels' factors on the kernels and on the images."""
    for module in (expert_conv, forms):
        monkeypatch.setattr(module, "are_kernels_smaller", lambda *_: request.param == "kernels")
    return request.param


def _case(
    geometry: dict[str, Any], batch: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], Window]:
    """Random tensors and the window."""
    size, groups = geometry["size"], geometry["groups"]
    tensors = dict(
        input=torch.randn(batch, 4, 7, 8),
        experts=torch.randn(3, 8, 4 // groups, *size),
        routing=torch.randn(batch, 3),
        bias=torch.randn(batch, 8),
        channels=torch.randn(batch, 4),
        filters=torch.randn(batch, 8),
        taps=torch.randn(batch, size[0] * size[1]),
    )
    pairs = (pair(name, geometry[name], minimum=0) for name in ("stride", "padding", "dilation"))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return tensors, Window(*pairs, groups)


def _mixed(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    bias: Tensor | None = None,
    channels: Tensor | None = None,
    filters: Tensor | None = None,
    taps: Tensor | None = None,
    window: Window = Window(),  # noqa: B008
) -> Tensor:
    factors = Factors(channels, filters, taps)
    return expert_conv2d(input, experts, routing, bias, factors, window)


def _reference(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    bias: Tensor | None = None,
    channels: Tensor | None = None,
    filters: Tensor | None = None,
    taps: Tensor | None = None,
    window: Window = Window(),  # noqa: B008
) -> Tensor:
    """One sample after the other, one expert after the other."""
    outputs = []
    for n, image in enumerate(input):
        kernel = sum(share * expert for share, expert in zip(routing[n], experts, strict=True))
        if taps is not None:
            kernel = kernel * taps[n].view(experts.shape[3:])
        if channels is not None:
            image = image * channels[n, :, None, None]
        output = F.conv2d(image[None], kernel, None, *window)
        if filters is not None:
            output = output * filters[n, :, None, None]
        outputs.append(output if bias is None else output + bias[n, :, None, None])
    return torch.cat(outputs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("optional", [("bias", "channels", "filters", "taps"), ("filters",), ()])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_one_convolution_a_sample(
    geometry: dict, optional: tuple, layout: torch.memory_format, tile: None, folded: str
) -> None:
    tensors, window = _case(geometry)
    for name in {"bias", "channels", "filters", "taps"}.difference(optional):
        del tensors[name]
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    output = _mixed(**tensors, window=window)
    assert output.is_contiguous(memory_format=layout)
    assert_close(output, _reference(**tensors, window=window))


def test_a_window_moves_by_one_pixel_without_padding_by_default() -> None:
    tensors, window = _case(dict(size=(3, 2), stride=1, padding=0, dilation=1, groups=1))
    assert_close(_mixed(**tensors), _reference(**tensors, window=window))


@pytest.mark.parametrize(
    "changed", [dict(padding=1), dict(size=(1, 2)), dict(size=(2, 1))], ids=str
)
def test_more_than_one_pixel_is_no_matrix_product(changed: dict) -> None:
    pointwise = dict(size=(1, 1), stride=1, padding=0, dilation=1, groups=1)
    tensors, window = _case(pointwise | changed)
    assert forms.is_pointwise((1, 1), Window())
    assert not forms.is_pointwise(tensors["experts"].shape[3:], window)
    assert_close(_mixed(**tensors, window=window), _reference(**tensors, window=window))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_the_references(geometry: dict, tile: None, folded: str) -> None:
    tensors, window = _case(geometry)
    for tensor in tensors.values():
        tensor.requires_grad_()
    output, expected = _mixed(**tensors, window=window), _reference(**tensors, window=window)
    cotangent = torch.randn_like(expected)
    actual = torch.autograd.grad(output, list(tensors.values()), cotangent)
    wanted = torch.autograd.grad(expected, list(tensors.values()), cotangent)
    for gradient, reference in zip(actual, wanted, strict=True):
        assert_close(gradient, reference)


def _names() -> list[tuple[str, ...]]:
    names = ("input", "experts", "routing", "taps")
    return [each for count in (1, 2) for each in itertools.combinations(names, count)]


@pytest.mark.parametrize("learned", _names())
def test_gradients_of_a_part_of_the_tensors(learned: tuple[str, ...], tile: None) -> None:
    tensors, window = _case(GEOMETRIES[1])
    for name in learned:
        tensors[name].requires_grad_()
    wanted = [tensors[name] for name in learned]
    output, expected = _mixed(**tensors, window=window), _reference(**tensors, window=window)
    actual = torch.autograd.grad(output.square().sum(), wanted)
    references = torch.autograd.grad(expected.square().sum(), wanted)
    for gradient, reference in zip(actual, references, strict=True):
        assert_close(gradient, reference)


def test_recorded_gradients_where_the_mixture_depends_on_the_input(tile: None) -> None:
    tensors, window = _case(GEOMETRIES[0])
    image, routing = tensors["input"].requires_grad_(), tensors["routing"]

    def loss(image: Tensor, convolve: Callable[..., Tensor] = _mixed) -> Tensor:
        shares = routing * image.mean()
        return convolve(image, tensors["experts"], shares, window=window).square().sum()

    (expected,) = torch.autograd.grad(loss(image, _reference), image)
    (recorded,) = torch.autograd.grad(loss(image), image, create_graph=True)
    assert_close(recorded, expected)
    assert_close(torch.func.grad(loss)(image), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_vmap_and_forward_mode(layout: torch.memory_format, tile: None) -> None:
    tensors, window = _case(GEOMETRIES[1])
    images = torch.stack([tensors["input"], tensors["input"] + 1])
    images = images.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (2, 3))
    kernels = dict(experts=tensors["experts"], routing=tensors["routing"], window=window)
    mixed, reference = partial(_mixed, **kernels), partial(_reference, **kernels)
    outputs = torch.func.vmap(mixed)(images)
    for output, image in zip(outputs, images, strict=True):
        assert_close(output, reference(image))
    tangent = torch.randn_like(images[0])
    _, derivative = torch.func.jvp(mixed, (images[0],), (tangent,))
    assert_close(derivative, reference(tangent))


def test_experts_of_any_strides(tile: None) -> None:
    tensors, window = _case(GEOMETRIES[0])
    tensors["experts"] = tensors["experts"].transpose(1, 4).contiguous().transpose(1, 4)
    experts = tensors["experts"].requires_grad_()
    actual, expected = (
        torch.autograd.grad(convolve(**tensors, window=window).square().sum(), experts)[0]
        for convolve in (_mixed, _reference)
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[3]])
def test_second_derivatives(geometry: dict, tile: None) -> None:
    tensors, window = _case(geometry)
    leaves = tuple(tensor.requires_grad_() for tensor in tensors.values())
    names = list(tensors)

    def output(*values: Tensor) -> Tensor:
        return _mixed(**dict(zip(names, values, strict=True)), window=window)

    assert torch.autograd.gradgradcheck(output, leaves, fast_mode=True)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(
                torch.__version__ < (2, 2), reason="this torch has no float16 products on a CPU"
            ),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[3]])
def test_every_dtype(dtype: torch.dtype, geometry: dict, tile: None) -> None:
    tensors, window = _case(geometry, dtype=dtype)
    for tensor in tensors.values():
        tensor.requires_grad_()
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    output, expected = _mixed(**tensors, window=window), _reference(**exact, window=window)
    assert output.dtype == dtype
    assert_close(output, expected, 5)
    output.sum().backward()
    expected.sum().backward()
    for name, tensor in tensors.items():
        assert_close(tensor.grad, exact[name].grad, 10)


def test_autocast_casts_every_tensor(tile: None) -> None:
    tensors, window = _case(GEOMETRIES[0], dtype=torch.float32)
    tensors["experts"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = _mixed(**tensors, window=window)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert tensors["experts"].grad.dtype == torch.float32
    exact = {name: tensor.detach().double() for name, tensor in tensors.items()}
    assert_close(output, _reference(**exact, window=window), 5)


def test_large_kernels_are_not_kept_for_the_backward_pass() -> None:
    batch, channels = 8, 512
    tensors = dict(
        input=torch.randn(batch, channels, 2, 2),
        experts=torch.randn(2, channels, channels, 3, 3, requires_grad=True),
        routing=torch.randn(batch, 2, requires_grad=True),
    )
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = _mixed(**tensors, window=Window(padding=(1, 1)))
    assert output.requires_grad
    assert sum(kept.values()) <= sum(tensor.numel() for tensor in tensors.values())


def test_many_gradients_at_once(tile: None) -> None:
    tensors, window = _case(GEOMETRIES[1])
    for tensor in tensors.values():
        tensor.requires_grad_()
    output = _mixed(**tensors, window=window)
    grads = torch.randn(2, *output.shape, dtype=output.dtype)
    inputs = tuple(tensors.values())
    actual = torch.autograd.grad(output, inputs, grads, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(output, inputs, grad, retain_graph=True) for grad in grads]
    for together, separate in zip(actual, zip(*each, strict=True), strict=True):
        assert torch.stack(separate).any()
        assert_close(together, torch.stack(separate))


def test_an_empty_batch_keeps_its_gradients() -> None:
    tensors, window = _case(GEOMETRIES[1], batch=0)
    for tensor in tensors.values():
        tensor.requires_grad_()
    output = _mixed(**tensors, window=window)
    assert output.shape == _case_output_shape(GEOMETRIES[1])
    output.sum().backward()
    assert all(tensor.grad is not None for tensor in tensors.values())


def _case_output_shape(geometry: dict) -> tuple[int, ...]:
    tensors, window = _case(geometry, batch=1)
    return (0, *_reference(**tensors, window=window).shape[1:])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_trace_serves_other_batch_and_image_sizes(geometry: dict) -> None:
    tensors, window = _case(geometry)

    def output(*values: Tensor) -> Tensor:
        return _mixed(*values, window=window)

    traced = torch.jit.trace(output, tuple(tensors.values()), check_trace=False)
    others, _ = _case(geometry, batch=5)
    others["input"] = torch.randn(5, 4, 9, 11, dtype=torch.float64)
    assert_close(traced(*others.values()), _reference(**others, window=window))


def test_compile_has_no_graph_break(tile: None) -> None:
    tensors, window = _case(GEOMETRIES[1])
    torch.compiler.reset()
    compiled = torch.compile(_mixed, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**tensors, window=window), _reference(**tensors, window=window))


@pytest.mark.parametrize(
    ("shape", "channels_out", "groups", "expected"),
    [
        ((1, 512, 7, 7), 512, 1, (1, 512)),  # 9 MB of kernels: all at once
        ((4, 512, 7, 7), 512, 1, (4, 128)),  # 38 MB: a part of the filters of all samples
        ((64, 512, 7, 7), 512, 1, (8, 64)),
        ((64, 4096, 1, 1), 20, 1, (4, 16)),  # at least a vector of filters
        ((64, 512, 7, 7), 512, 2, (2, 512)),  # groups are not divided
        ((64, 16, 224, 224), 16, 1, (3, 16)),  # large images: a few of them
        ((2, 16, 512, 512), 16, 1, (1, 16)),  # at least one
        ((64, 16, 128, 128), 64, 1, (2, 64)),  # the output is the larger image
    ],
)
def test_tiles(
    shape: tuple[int, ...], channels_out: int, groups: int, expected: tuple[int, int]
) -> None:
    input = torch.empty(shape)
    experts = torch.empty(1, 1).expand(4 * channels_out, shape[1] // groups * 9)
    experts = experts.view(4, channels_out, shape[1] // groups, 3, 3)
    window = Window(padding=(1, 1), groups=groups)
    assert tiles.tile_size(input, experts, window, 20 * 2**20) == expected


@pytest.mark.parametrize(("side", "on_kernels"), [(2, False), (40, True)])
def test_factors_go_to_the_smaller_of_kernel_and_image(side: int, on_kernels: bool) -> None:
    experts = torch.empty(2, 8, 8, 3, 3)
    assert forms.are_kernels_smaller(torch.empty(1, 8, side, side), experts) == on_kernels
