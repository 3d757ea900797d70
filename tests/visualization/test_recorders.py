"""What recorders read off the layers, against the layers' own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.layers import (
    ACBlock,
    CondConv2d,
    ConvAWS2d,
    DynamicConv2d,
    Involution2d,
    ODConv2d,
    SAConv2d,
    SPConv2d,
)
from rednet.layers.base import registered_layers
from rednet.ops import involution2d
from rednet.visualization import RECORDERS, find_layers
from rednet.visualization.recordings import Attention, Maps, Sampling, lattice_positions
from rednet.visualization.watching import listening, weights_of


def recorded(layer: nn.Module, input: Tensor, sampling: Sampling | None = None):
    """The single recording of a call, and the output."""
    with torch.no_grad(), listening({"layer": layer}, sampling or Sampling()) as recorders:
        output = layer.eval()(input)
    assert not any(module._forward_hooks for module in layer.modules()), "hooks were left behind"
    (recording,) = recorders["layer"].recordings
    return recording, output


def randomized(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer


@pytest.mark.parametrize("name", registered_layers())
def test_every_layer_has_a_recorder_that_shows_something(name: str) -> None:
    layer = randomized(registered_layers()[name](16, 16, 3, padding=1))
    with torch.no_grad(), listening({"layer": layer}, Sampling()) as recorders:
        expected = layer.eval()(torch.randn(1, 16, 7, 9))
    assert len(RECORDERS) == len(registered_layers())
    assert recorders["layer"].recordings or weights_of({"layer": layer})
    torch.testing.assert_close(layer(torch.zeros(1, 16, 7, 9)).shape, expected.shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_involution_records_the_kernels_that_it_applies(stride: int) -> None:
    layer = randomized(Involution2d(8, 8, 3, stride, 1, group_channels=4, bias=False))
    input = torch.randn(1, 8, 7, 9)
    points = ((0.05, 0.05), (0.5, 0.99))
    maps, output = recorded(layer, input, Sampling(points, lattice=True))
    assert isinstance(maps, Maps)
    height, width = output.shape[2:]
    assert maps.values.shape == (2, height, width)

    weight = torch.from_numpy(maps.lattice)  # small enough to be complete
    assert weight.shape == (2, 3, 3, height, width)
    torch.testing.assert_close(involution2d(input, weight[None], stride, 1), output)
    np.testing.assert_allclose(maps.values, weight.sum((1, 2)), rtol=1e-5, atol=1e-6)
    first, second = maps.kernels_at_points
    np.testing.assert_array_equal(first, weight[..., 0, 0])
    np.testing.assert_array_equal(second, weight[..., height - 1, width // 2])


def test_a_lattice_thins_large_maps() -> None:
    assert lattice_positions(5).tolist() == [0, 1, 2, 3, 4]
    positions = lattice_positions(200)
    assert len(positions) == 64
    assert positions[0] == 1 and positions[-1] == 198


def test_saconv_records_its_switch() -> None:
    layer = randomized(SAConv2d(4, 6, 3, padding=1))
    input = torch.randn(1, 4, 7, 9)
    maps, _ = recorded(layer, input)
    np.testing.assert_array_equal(maps.values, layer.switch_map(input)[0].detach())


def test_routing_reproduces_the_output() -> None:
    """The recorded shares, applied to the experts by hand, give what the layer gave."""
    input = torch.randn(1, 4, 6, 6)
    for kind, head in ((CondConv2d, "experts"), (DynamicConv2d, "kernels")):
        layer = randomized(kind(4, 6, 3, padding=1, bias=False))
        layer.set_temperature(3.0)
        attention, output = recorded(layer, input)
        assert isinstance(attention, Attention)
        shares = torch.from_numpy(attention.heads[head])
        kernel = torch.einsum("k,koihw->oihw", shares, layer.weight)
        torch.testing.assert_close(F.conv2d(input, kernel, padding=1), output)


def test_odconv_reproduces_the_output() -> None:
    layer = randomized(ODConv2d(4, 6, 3, padding=1, bias=False))
    input = torch.randn(1, 4, 6, 6)
    attention, output = recorded(layer, input)
    heads = {name: torch.from_numpy(each) for name, each in attention.heads.items()}
    kernel = torch.einsum("k,koihw->oihw", heads["kernels"], layer.weight)
    kernel = kernel * heads["kernel positions"].view(3, 3)
    kernel = kernel * heads["input channels"].view(1, -1, 1, 1)
    kernel = kernel * heads["output channels"].view(-1, 1, 1, 1)
    torch.testing.assert_close(F.conv2d(input, kernel, padding=1), output)


@pytest.mark.parametrize("deploy", [False, True])
def test_spconv_records_the_softmax_of_its_fusion(deploy: bool) -> None:
    layer = randomized(SPConv2d(4, 6, 3, padding=1)).eval()
    if deploy:
        layer.switch_to_deploy()
    input = torch.randn(1, 4, 6, 6)
    attention, output = recorded(layer, input)
    (share,) = (torch.from_numpy(each) for each in attention.heads.values())
    with torch.no_grad():
        full = layer.bn1(layer.gwc(input[:, :2]) + layer.pwc(input[:, :2]))
        slim = layer.bn2(layer.conv1x1(input[:, 2:]))
    share = share.view(1, -1, 1, 1)
    torch.testing.assert_close(share * full + (1 - share) * slim, output)


def test_acblock_shows_the_skeleton_that_fusion_adds() -> None:
    layer = randomized(ACBlock(4, 6, 3, padding=1)).eval()
    with torch.no_grad():
        for name in ("square", "ver", "hor"):
            getattr(layer, f"{name}_conv").weight.abs_()
            getattr(layer, f"{name}_bn").weight.fill_(1)
    panels = weights_of({"layer": layer})["layer"]
    expected = panels["square"].copy()
    expected[:, 1:2] += panels["vertical"]
    expected[1:2] += panels["horizontal"]
    np.testing.assert_allclose(panels["fused"], expected, rtol=1e-5)
    deployed = weights_of({"layer": layer.switch_to_deploy()})["layer"]
    np.testing.assert_allclose(deployed["fused"], expected, rtol=1e-5)


def test_acblock_with_other_norms_shows_its_branches() -> None:
    layer = ACBlock(4, 6, 3, padding=1)
    layer.square_bn = layer.ver_bn = layer.hor_bn = nn.GroupNorm(2, 6)
    assert "fused" not in weights_of({"layer": layer})["layer"]


def test_convaws_shows_its_kernel_before_and_after() -> None:
    layer = ConvAWS2d(4, 6, 3)
    panels = weights_of({"layer": layer})["layer"]
    kernel = layer.kernel().detach().abs().mean((0, 1))
    np.testing.assert_allclose(panels["standardized"], kernel, rtol=1e-6)


def test_layers_are_found_by_a_pattern() -> None:
    model = nn.ModuleDict({f"a{index}": ConvAWS2d(2, 2, 3) for index in range(3)})
    assert list(find_layers(model, "a[12]")) == ["a1", "a2"]
    with pytest.raises(ValueError, match="layers='b' matches none of the model's layers: a0, a1,"):
        find_layers(model, "b")
    with pytest.raises(ValueError, match=r"layers must be a regular expression, got '\('"):
        find_layers(model, "(")
    with pytest.raises(Exception, match="the model has none of the layers.* ACBlock, "):
        find_layers(nn.Conv2d(1, 1, 1))
