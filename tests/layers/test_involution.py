from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from rednet import ops
from rednet.layers import Involution2d
from rednet.layers import involution as involution_layer
from rednet.ops import involution2d


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("involution_k7_s1")
    compared = vectors.check(Involution2d(32, 32, 7, padding=3, bias=False))
    assert len(compared) == 7


def _weight_of(layer: Involution2d, image: Tensor) -> Tensor:
    kernels = layer.conv2(layer.conv1(image))
    return kernels.reshape(len(image), -1, *layer.kernel_size, *kernels.shape[2:])


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_with_a_stride_kernels_come_from_the_average(size: tuple[int, int], dilation: int) -> None:
    layer = Involution2d(
        16, 16, 3, stride=2, padding=dilation, dilation=dilation, bias=False
    ).eval()
    image = torch.randn(2, 16, *size)
    weight = _weight_of(layer, F.avg_pool2d(image, 2, 2, ceil_mode=True))
    expected = involution2d(image, weight, stride=2, padding=dilation, dilation=dilation)
    torch.testing.assert_close(layer(image), expected)


def test_without_padding_kernels_come_from_the_windows_centers() -> None:
    layer = Involution2d(16, 16, 5, bias=False).eval()
    image = torch.randn(2, 16, 9, 10)
    weight = _weight_of(layer, image[..., 2:-2, 2:-2])
    torch.testing.assert_close(layer(image), involution2d(image, weight))


def test_centers_outside_the_image_read_zero() -> None:
    layer = Involution2d(16, 16, 1, padding=1, bias=False).eval()
    image = torch.randn(2, 16, 4, 4)
    weight = _weight_of(layer, F.pad(image, (1, 1, 1, 1)))
    torch.testing.assert_close(layer(image), involution2d(image, weight, padding=1))


def test_other_out_channels_go_through_a_projection() -> None:
    layer = Involution2d(8, 32, 3, padding=1, groups=2).eval()
    assert layer.projection.weight.shape == (32, 4, 1, 1) and layer.projection.bias is None
    same = Involution2d(32, 32, 3, padding=1).eval()
    assert not hasattr(same, "projection")
    same.load_state_dict(layer.state_dict(), strict=False)
    image = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(layer(image), same(layer.projection(image)))


def test_bias_is_added_to_the_output() -> None:
    layer = Involution2d(16, 16, 3, padding=1).eval()
    image = torch.randn(1, 16, 5, 5)
    before = layer(image)
    nn.init.constant_(layer.bias, 3.0)
    torch.testing.assert_close(layer(image), before + 3)
    assert Involution2d(16, 16, 3, bias=False).bias is None


def test_the_bottleneck_has_the_published_widths() -> None:
    layer = Involution2d(64, 64, 7, padding=3, group_channels=8, reduction_ratio=2)
    assert layer.conv1.conv.weight.shape == (32, 64, 1, 1)
    assert layer.conv2.conv.weight.shape == (49 * 8, 32, 1, 1)


def test_norm_cfg_reaches_the_bottleneck() -> None:
    layer = Involution2d(16, 16, 3, norm_cfg=dict(type="GN", num_groups=2))
    assert isinstance(layer.conv1.norm, nn.GroupNorm)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "geometry",
    [dict(kernel_size=7, padding=3, stride=2), dict(kernel_size=3, stride=2), dict(kernel_size=5)],
)
def test_a_trace_serves_any_batch_and_size(geometry: dict) -> None:
    layer = Involution2d(16, 16, **geometry).eval()
    traced = torch.jit.trace(layer, (torch.randn(2, 16, 10, 12),))
    for shape in ((3, 16, 11, 14), (1, 16, 16, 9)):
        image = torch.randn(shape)
        torch.testing.assert_close(traced(image), layer(image))


def test_export_serves_any_batch() -> None:
    if not hasattr(torch.export, "Dim"):
        pytest.skip("torch.export.Dim came with torch 2.2")
    layer, free = Involution2d(16, 16, 3, padding=1, stride=2).eval(), torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(2, 16, 9, 8),), dynamic_shapes=({0: free},))
    image = torch.randn(5, 16, 9, 8)
    torch.testing.assert_close(program.module()(image), layer(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(out_channels=24), "out_channels must be a multiple of group_channels=16, got 24"),
        (dict(reduction_ratio=17), "out_channels must be at least reduction_ratio=17, got 16"),
        (dict(group_channels=0), "group_channels must be at least 1, got 0"),
        (dict(in_channels=0), "in_channels must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_served(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Involution2d(**{"in_channels": 16, "out_channels": 16, "kernel_size": 3, **arguments})


def test_init_cfg_sets_how_the_convolutions_start() -> None:
    torch.manual_seed(0)
    xavier = dict(type="Xavier", distribution="uniform")
    layer = Involution2d(256, 256, 7, init_cfg=xavier)
    for convolution in (layer.conv1.conv, layer.conv2.conv):
        outputs, inputs = convolution.weight.shape[:2]
        bound = (6 / (inputs + outputs)) ** 0.5
        assert convolution.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The outputs' shapes of the calls that generate the weight where they apply it."""
    shapes: list[torch.Size] = []
    whole = involution_layer.generating_involution2d

    def recorded(*args: Any) -> Tensor:
        output = whole(*args)
        shapes.append(output.shape)
        return output

    monkeypatch.setattr(involution_layer, "generating_involution2d", recorded)
    with ops.backend("reference"):
        yield shapes


GENERATING = [
    dict(kernel_size=7, padding=3),
    dict(kernel_size=3, padding="same", padding_mode="reflect", bias=False),
    dict(kernel_size=5, stride=2, dilation=2, group_channels=8),
]


@pytest.mark.parametrize("arguments", GENERATING)
def test_in_inference_the_weight_is_generated_where_it_is_applied(
    generated: list[torch.Size], arguments: dict
) -> None:
    layer = Involution2d(16, 32, **arguments, regenerate_weight=False).eval().double()
    image = torch.randn(2, 16, 11, 10, dtype=torch.float64)
    expected = layer(image)
    assert not generated
    with torch.no_grad():
        torch.testing.assert_close(layer(image), expected)
    assert generated == [expected.shape]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("watched", ["hook", "another conv2", "FLOPs", "torch.func"])
def test_what_is_watched_is_not_generated_in_one(
    generated: list[torch.Size], watched: str, training: bool
) -> None:
    layer, image = Involution2d(16, 16, 3, padding=1).eval(), torch.randn(1, 16, 4, 4)
    call: Callable = layer
    if watched == "hook":
        layer.conv2.conv.register_forward_hook(lambda *_: None)
    elif watched == "another conv2":
        layer.conv2 = nn.Sequential(layer.conv2)
    elif watched == "torch.func":
        call = torch.func.vmap(lambda each: layer(each[None])[0])
    flops = FlopCounterMode(display=False) if watched == "FLOPs" else nullcontext()
    with torch.set_grad_enabled(training), flops:
        assert call(image).shape == image.shape
    assert not generated


def _operators_of(layer: Involution2d, image: Tensor) -> tuple[Tensor, set[str]]:
    """The output of the compiled layer, and the operators of ours in its graph."""
    names: set[str] = set()

    def backend(graph: fx.GraphModule, _: Any) -> Callable:
        names.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    output = torch.compile(layer, backend=backend, fullgraph=True)(image)
    return output, {name for name in names if name.startswith("rednet.")}


KNOWS_EXPORT = hasattr(torch.compiler, "is_exporting")  # torch >= 2.7
IN_ONE, IN_TWO = {"rednet.generating_involution2d"}, {"rednet.involution2d"}


@pytest.mark.parametrize("watched", ["nothing", "hook", "all modules", "forward", "gradient"])
def test_compiled_for_inference_the_weight_is_generated_where_it_is_applied(watched: str) -> None:
    layer, image = Involution2d(16, 16, 3, padding=1).eval(), torch.randn(1, 16, 4, 5)
    convolution = layer.conv2.conv
    handle = None
    if watched == "hook":
        convolution.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif watched == "all modules":
        handle = register_module_forward_hook(lambda module, inputs, output: None)
    elif watched == "forward":
        convolution.forward = lambda input: 2 * F.conv2d(input, convolution.weight)
    try:
        with torch.set_grad_enabled(watched == "gradient"):
            expected = layer(image)
            output, operators = _operators_of(layer, image)
    finally:
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(output, expected)
    assert operators == (IN_ONE if watched == "nothing" and KNOWS_EXPORT else IN_TWO)


@pytest.mark.skipif(not KNOWS_EXPORT, reason="before torch 2.7 every graph keeps them")
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_graph_keeps_the_two_steps(strict: bool) -> None:
    layer, image = Involution2d(16, 16, 3, padding=1).eval(), torch.randn(1, 16, 4, 5)
    with torch.no_grad():
        graph = torch.export.export(layer, (image,), strict=strict).graph
    names = {str(node.target) for node in graph.nodes if "rednet." in str(node.target)}
    assert names == {"rednet.involution2d.default"}


def _gradients(layer: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    output = layer(image)
    return torch.autograd.grad(output.square().sum(), (image, *layer.parameters()))


@pytest.mark.parametrize("arguments", GENERATING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_regenerated_weight_gives_the_gradients_of_a_kept_one(
    arguments: dict, layout: torch.memory_format
) -> None:
    kept = Involution2d(16, 32, **arguments, regenerate_weight=False).double()
    regenerated = Involution2d(16, 32, **arguments).double()
    regenerated.load_state_dict(kept.state_dict())
    image = torch.randn(2, 16, 11, 10, dtype=torch.float64).to(memory_format=layout)
    image.requires_grad_()
    torch.testing.assert_close(_gradients(regenerated, image), _gradients(kept, image))


def test_under_autocast_a_regenerated_weight_gives_the_same_gradients() -> None:
    kept = Involution2d(16, 16, 3, padding=1, regenerate_weight=False)
    regenerated = Involution2d(16, 16, 3, padding=1)
    regenerated.load_state_dict(kept.state_dict())
    image = torch.randn(2, 16, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = _gradients(regenerated, image), _gradients(kept, image)
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
    assert all(each.dtype == torch.float32 for each in actual)


def test_frozen_generators_pass_gradients_on() -> None:
    kept = Involution2d(16, 16, 3, padding=1, regenerate_weight=False, bias=False).double()
    regenerated = Involution2d(16, 16, 3, padding=1, bias=False).double()
    regenerated.load_state_dict(kept.state_dict())
    for frozen in ("conv2.conv.weight", "conv1.conv.weight"):
        gradients = []
        for layer in (kept, regenerated):
            layer.get_parameter(frozen).requires_grad_(False)
            image = torch.ones(1, 16, 5, 5, dtype=torch.float64, requires_grad=True)
            layer(image).sum().backward()
            gradients.append([image.grad, *(each.grad for each in layer.parameters())])
        torch.testing.assert_close(gradients[1], gradients[0], equal_nan=True)


def test_the_weight_is_not_kept_for_the_backward_pass() -> None:
    image = torch.randn(2, 16, 6, 5, requires_grad=True)
    bytes_kept = {}
    for regenerates in (True, False):
        layer = Involution2d(16, 16, 7, padding=3, regenerate_weight=regenerates)
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = layer(image)
        bytes_kept[regenerates] = sum(saved.values())
        del output
    # The bias of the generating convolution, 49 numbers, is kept instead.
    assert bytes_kept[False] - bytes_kept[True] == 4 * (49 * 2 * 6 * 5 - 49)
