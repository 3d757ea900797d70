from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor

from rednet.layers import SPConv2d
from tests.layers.cases import randomized
from tests.tolerances import assert_close


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("spconv_s1")
    compared = vectors.check(SPConv2d(16, 24, 3, padding=1))
    assert len(compared) == 10


def _published(layer: SPConv2d, image: Tensor, padding: int) -> Tensor:
    """The layer by the book, for a 3 x 3 kernel and the padding that keeps its center."""
    kept, rest = image.tensor_split([layer.pwc.in_channels], dim=1)
    full = F.conv2d(kept, layer.gwc.weight, None, layer.stride, padding, layer.dilation, 2)
    if layer.stride != (1, 1):
        kept, rest = (F.avg_pool2d(part, layer.stride, ceil_mode=True) for part in (kept, rest))
    full = layer.bn1(full + layer.pwc(kept))
    slim = layer.bn2(layer.conv1x1(rest))
    shares = torch.stack([part.mean((2, 3)) for part in (full, slim)]).softmax(0)
    return shares[0, ..., None, None] * full + shares[1, ..., None, None] * slim


@pytest.mark.parametrize("ratio", [1 / 2, 1 / 4, 1 / 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_follows_the_published_form(
    ratio: float, stride: int, dilation: int, training: bool
) -> None:
    layer = SPConv2d(16, 12, 3, stride=stride, padding=dilation, dilation=dilation, ratio=ratio)
    randomized(layer).double().train(training)
    other = copy.deepcopy(layer)
    image = torch.randn(3, 16, 8, 11, dtype=torch.float64)
    assert_close(layer(image), _published(other, image, dilation))
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


@pytest.mark.parametrize("stride", [1, 2])
def test_without_padding_the_1x1_paths_see_the_windows_centers(stride: int) -> None:
    layer = randomized(SPConv2d(8, 4, 3, stride=stride)).double().eval()
    image = torch.zeros(1, 8, 10, 12, dtype=torch.float64)
    image[..., 1:-1, 1:-1] = torch.randn(8, 8, 10)
    padded = SPConv2d(8, 4, 3, stride=stride, padding=1).double().eval()
    padded.load_state_dict(layer.state_dict())
    assert_close(layer(image), padded(image[..., 1:-1, 1:-1]))


@pytest.mark.parametrize(
    ("in_channels", "ratio", "reason"),
    [
        (16, 1.0, "gives 16 and 0"),
        (16, 1 / 32, "gives 0 and 16"),
        (18, 0.5, "gives 9, which is not a multiple of 2"),
    ],
)
def test_both_parts_hold_channels(in_channels: int, ratio: float, reason: str) -> None:
    with pytest.raises(ValueError, match=f"ratio={ratio} of in_channels={in_channels}.*{reason}"):
        SPConv2d(in_channels, 16, 3, ratio=ratio)


def test_other_geometry_that_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="groups must be 1, got 2"):
        SPConv2d(16, 16, 3, groups=2)
    with pytest.raises(ValueError, match="out_channels must be a multiple of 2, got 15"):
        SPConv2d(16, 15, 3)
    with pytest.raises(TypeError, match="ratio must be a number, got '1/2'"):
        SPConv2d(16, 16, 3, ratio="1/2")
    with pytest.raises(ValueError, match="ratio must be finite and above 0, got -0.5"):
        SPConv2d(16, 16, 3, ratio=-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deployed_the_norms_are_in_the_convolutions(dtype: torch.dtype) -> None:
    layer = randomized(SPConv2d(16, 12, 3, stride=2, padding=1)).eval().to(dtype)
    image = torch.randn(2, 16, 7, 8).to(dtype)
    expected = copy.deepcopy(layer).double()(image.double())
    deployed = layer.switch_to_deploy()
    assert_close(deployed(image), expected, 20)
    assert_close(deployed.switch_to_deploy()(image), expected, 20)
    assert sorted(deployed.state_dict()) == [
        "conv1x1.bias",
        "conv1x1.weight",
        "gwc.bias",
        "gwc.weight",
        "pwc.weight",
    ]


def test_tools_that_fold_norms_leave_the_two_parts_alone() -> None:
    layer = randomized(SPConv2d(16, 12, 3, padding=1)).eval()
    image = torch.randn(2, 16, 5, 5)
    expected = layer(image)
    torch.testing.assert_close(fuse_conv_bn(layer)(image), expected)


def test_the_kernels_start_kaiming_by_fan_out() -> None:
    torch.manual_seed(0)
    layer = SPConv2d(256, 256, 3, padding=1)  # of ResNet-50's layer3.1
    expected = {"gwc": (2 / (256 * 9)) ** 0.5, "pwc": (2 / 256) ** 0.5, "conv1x1": (2 / 256) ** 0.5}
    for name, deviation in expected.items():
        assert getattr(layer, name).weight.std().item() == pytest.approx(deviation, rel=0.02)
