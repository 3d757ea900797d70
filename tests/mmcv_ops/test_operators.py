"""Operators that compiled mmcv lacks on the CPU, against plain rewritings in float64."""

from __future__ import annotations

from functools import partial
from math import ceil, floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

pytest.importorskip("torchvision")
import rednet  # noqa: E402, F401  (offers the operators)

mmcv_ops = pytest.importorskip("mmcv.ops")
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from mmcv.ops.psa_mask import psa_mask  # noqa: E402

from rednet.mmcv_ops import box_overlaps, sync_bn  # noqa: E402
from tests.tolerances import assert_close  # noqa: E402

double = partial(torch.randn, dtype=torch.float64)
ROIS = torch.tensor(
    [[0, 2.0, 3.0, 21.0, 17.0], [1, -5.0, 4.5, 9.0, 40.0], [1, 7.0, 7.0, 7.0, 7.0]],
    dtype=torch.float64,
)


# ---- CARAFE


def carafe_by_loops(features: Tensor, masks: Tensor, size: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    output = features.new_zeros(batch, channels, height * scale, width * scale)
    for channel in range(channels):
        group = channel // (channels // groups)
        for row in range(height * scale):
            for column in range(width * scale):
                for i in range(size):
                    for j in range(size):
                        y, x = row // scale - size // 2 + i, column // scale - size // 2 + j
                        if 0 <= y < height and 0 <= x < width:
                            tap = group * size * size + i * size + j
                            factor = masks[:, tap, row, column]
                            output[:, channel, row, column] += features[:, channel, y, x] * factor
    return output


@pytest.mark.parametrize("function", [mmcv_ops.carafe, mmcv_ops.carafe_naive])
def test_carafe(function: object) -> None:
    features, masks = double(2, 4, 3, 2), double(2, 2 * 9, 6, 4)
    actual = function(features, masks, 3, 2, 2)  # type: ignore[operator]
    assert_close(actual, carafe_by_loops(features, masks, 3, 2, 2))


def test_the_gradient_of_carafe() -> None:
    features = double(1, 2, 2, 3, requires_grad=True)
    masks = double(1, 9, 4, 6, requires_grad=True)
    assert gradcheck(lambda *inputs: mmcv_ops.carafe(*inputs, 3, 1, 2), (features, masks))


# ---- regions


def roi_pool_by_loops(input: Tensor, rois: Tensor, bins: tuple[int, int], scale: float) -> Tensor:
    output = input.new_zeros(len(rois), input.shape[1], *bins)
    for index, (image, *corners) in enumerate(rois.tolist()):
        left, top = corners[0] * scale, corners[1] * scale
        width, height = (corners[2] + 1) * scale - left, (corners[3] + 1) * scale - top
        for row in range(bins[0]):
            first = min(max(floor(row * height / bins[0] + top), 0), input.shape[2])
            last = min(max(ceil((row + 1) * height / bins[0] + top), 0), input.shape[2])
            for column in range(bins[1]):
                begin = min(max(floor(column * width / bins[1] + left), 0), input.shape[3])
                end = min(max(ceil((column + 1) * width / bins[1] + left), 0), input.shape[3])
                window = input[int(image), :, first:last, begin:end].flatten(1)
                if window.numel():
                    output[index, :, row, column] = window.amax(dim=1)
    return output


def test_roi_pool() -> None:
    input = double(2, 3, 9, 11, requires_grad=True)
    output = mmcv_ops.roi_pool(input, ROIS, (3, 2), 0.25)
    assert_close(output, roi_pool_by_loops(input, ROIS, (3, 2), 0.25))
    cotangent = double(output.shape)
    (expected,) = torch.autograd.grad(
        roi_pool_by_loops(input, ROIS, (3, 2), 0.25), input, cotangent
    )
    assert_close(torch.autograd.grad(output, input, cotangent)[0], expected)


def test_roi_pool_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    input = double(2, 3, 9, 11)
    whole = mmcv_ops.roi_pool(input, ROIS, (3, 2), 0.25)
    monkeypatch.setattr("rednet.mmcv_ops.roi_pool._PIXELS_AT_ONCE", 1)
    assert torch.equal(mmcv_ops.roi_pool(input, ROIS, (3, 2), 0.25), whole)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_the_gradient_of_roi_align(pool_mode: str, sampling_ratio: int) -> None:
    def pooled(input: Tensor) -> Tensor:
        return mmcv_ops.roi_align(input, ROIS, (2, 3), 0.25, sampling_ratio, pool_mode, True)

    assert gradcheck(pooled, double(2, 2, 6, 7, requires_grad=True))


def interpolated(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """One bilinear sample, by grid_sample; a border pixel repeats half a pixel beyond the edge."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1]).view(1, 1, 1, 2)
    return F.grid_sample(plane[None, None], grid, align_corners=True).squeeze()


def deform_roi_pool_by_loops(
    input: Tensor, rois: Tensor, offset: Tensor, bins: tuple[int, int], scale: float, gamma: float
) -> Tensor:
    planes = []
    for index, (image, *corners) in enumerate(rois.tolist()):
        left, top = corners[0] * scale - 0.5, corners[1] * scale - 0.5
        width, height = (corners[2] - corners[0]) * scale, (corners[3] - corners[1]) * scale
        for channel in range(input.shape[1]):
            for row in range(bins[0]):
                for column in range(bins[1]):
                    x_move, y_move = offset[index, :, row, column] * gamma
                    samples = [
                        interpolated(
                            input[int(image), channel],
                            top + y_move * height + (row + (i + 0.5) / 2) * height / bins[0],
                            left + x_move * width + (column + (j + 0.5) / 2) * width / bins[1],
                        )
                        for i in range(2)
                        for j in range(2)
                    ]
                    planes.append(sum(samples) / 4)
    return torch.stack(planes).view(len(rois), input.shape[1], *bins)


def test_deform_roi_pool() -> None:
    input, offset = double(2, 2, 6, 7, requires_grad=True), double(3, 2, 2, 2, requires_grad=True)
    actual = mmcv_ops.deform_roi_pool(input, ROIS, offset, (2, 2), 0.25, 2, 0.1)
    expected = deform_roi_pool_by_loops(input, ROIS, offset, (2, 2), 0.25, 0.1)
    assert_close(actual, expected)
    cotangent = double(actual.shape)
    for own, reference in zip(
        torch.autograd.grad(actual, (input, offset), cotangent),
        torch.autograd.grad(expected, (input, offset), cotangent),
        strict=True,
    ):
        assert_close(own, reference)


def test_deform_roi_pool_without_offsets() -> None:
    input = double(2, 2, 6, 7, requires_grad=True)
    none = input.new_zeros(0)

    def pooled(input: Tensor) -> Tensor:
        return mmcv_ops.deform_roi_pool(input, ROIS, none, (2, 2), 0.25, 0, 0.1)

    average = mmcv_ops.roi_align(input, ROIS, (2, 2), 0.25, 0, "avg", True)
    assert_close(pooled(input)[:2], average[:2])
    assert gradcheck(pooled, input)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_no_regions(pool_mode: str) -> None:
    input, none = torch.randn(2, 3, 6, 7, requires_grad=True), torch.zeros(0, 5)
    output = mmcv_ops.roi_align(input, none, (2, 2), 0.25, 0, pool_mode, True)
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert not input.grad.any()
    assert mmcv_ops.roi_pool(input, none, (2, 2), 0.25).shape == (0, 3, 2, 2)


# ---- losses


def sigmoid_focal_loss_by_formula(x: Tensor, t: Tensor, gamma: float, alpha: float) -> Tensor:
    one_hot = F.one_hot(t, x.shape[1] + 1)[:, :-1].double()
    p = x.sigmoid()
    p_t = one_hot * p + (1 - one_hot) * (1 - p)
    alpha_t = one_hot * alpha + (1 - one_hot) * (1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * p_t.log()


@pytest.mark.parametrize("has_weight", [False, True])
def test_sigmoid_focal_loss(has_weight: bool) -> None:
    logits, target = double(6, 4, requires_grad=True), torch.tensor([0, 3, 4, 1, 4, 2])
    weight = torch.rand(4, dtype=torch.float64) if has_weight else None

    def loss(logits: Tensor) -> Tensor:
        return mmcv_ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")

    expected = sigmoid_focal_loss_by_formula(logits, target, 2.0, 0.25)
    if weight is not None:
        background = weight.new_ones(1)
        expected = expected * torch.cat([weight, background])[target][:, None]
    assert_close(loss(logits), expected)
    assert gradcheck(lambda logits: loss(logits).sum(), logits)


def test_softmax_focal_loss() -> None:
    logits, target = double(6, 4, requires_grad=True), torch.tensor([0, 3, -1, 1, 1, 2])
    weight = torch.rand(4, dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return mmcv_ops.softmax_focal_loss(logits, target, 2.0, 0.25, weight, "sum")

    is_sample = target >= 0
    p_t = logits.softmax(1)[is_sample, target[is_sample]]
    expected = -0.25 * weight[target[is_sample]] * (1 - p_t) ** 2 * p_t.log()
    assert_close(loss(logits), expected.sum())
    assert gradcheck(loss, logits)


# ---- attention


@pytest.mark.parametrize("psa_type", [0, 1])
def test_psa_mask(psa_type: int) -> None:
    windows = double(2, 3 * 5, 4, 3, requires_grad=True)
    actual = psa_mask(windows, psa_type, (3, 5))
    expected = windows.new_zeros(2, 12, 4, 3)
    for row in range(4):
        for column in range(3):
            for i in range(3):
                for j in range(5):
                    y, x = row + i - 1, column + j - 2
                    if 0 <= y < 4 and 0 <= x < 3:
                        entry = windows[:, i * 5 + j, row, column]
                        if psa_type == 0:
                            expected[:, y * 3 + x, row, column] = entry
                        else:
                            expected[:, row * 3 + column, y, x] = entry
    assert_close(actual, expected)
    assert gradcheck(lambda windows: psa_mask(windows, psa_type, (3, 5)), windows)


def test_multi_scale_deformable_attention() -> None:
    shapes = torch.tensor([[4, 5], [2, 3]])
    starts = torch.tensor([0, 20])
    value = double(2, 26, 2, 3, requires_grad=True)
    locations = torch.rand(2, 4, 2, 2, 3, 2, dtype=torch.float64).requires_grad_()
    weights = torch.rand(2, 4, 2, 2, 3, dtype=torch.float64).requires_grad_()

    def attended(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    assert_close(attended(value, locations, weights), expected)
    assert gradcheck(attended, (value, locations, weights))


# ---- the rest


def test_masked_convolution() -> None:
    layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=1).double()
    input, mask = double(1, 3, 6, 5), torch.rand(1, 6, 5) > 0.5
    expected = F.conv2d(input, layer.weight, layer.bias, padding=1) * mask
    assert_close(layer(input, mask), expected)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_box_overlaps(mode: str, aligned: bool, offset: int) -> None:
    corners = torch.rand(2, 6, 2, dtype=torch.float64) * 10
    first, second = torch.cat([corners, corners + 5 * torch.rand_like(corners)], dim=-1)
    expected = mmcv_ops.bbox_overlaps(first, second, mode, aligned, offset)  # mmcv's own, on a CPU
    actual = torch.full_like(expected, torch.nan)
    box_overlaps.bbox_overlaps(first, second, actual, int(mode == "iof"), aligned, offset)
    assert_close(actual, expected)


def test_synchronized_batch_norm_of_one_process() -> None:
    """Its steps on one process make PyTorch's batch norm, running statistics included."""
    input, cotangent = double(3, 4, 5, requires_grad=True), double(3, 4, 5)
    peer = nn.BatchNorm1d(4).double()
    nn.init.normal_(peer.weight)
    nn.init.normal_(peer.bias)
    expected = peer(input)
    grads = torch.autograd.grad(expected, (input, peer.weight, peer.bias), cotangent)

    mean, var, std = (torch.empty(4, dtype=torch.float64) for _ in range(3))
    norm, output = torch.empty_like(input), torch.empty_like(input)
    running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    sync_bn.sync_bn_forward_mean(input, mean)
    sync_bn.sync_bn_forward_var(input, mean, var)
    affine = peer.weight.detach(), peer.bias.detach()
    with torch.no_grad():
        sync_bn.sync_bn_forward_output(
            input, mean, var, *affine, *running, norm, std, output, 1e-5, 0.1, 1
        )
    assert_close(output, expected)
    assert_close(running[0], peer.running_mean)
    assert_close(running[1], peer.running_var)
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    sync_bn.sync_bn_backward_param(cotangent, norm, grad_weight, grad_bias)
    grad_input = torch.empty_like(input)
    sync_bn.sync_bn_backward_data(
        cotangent, affine[0], grad_weight, grad_bias, norm, std, grad_input
    )
    for own, reference in zip((grad_input, grad_weight, grad_bias), grads, strict=True):
        assert_close(own, reference)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_deformable_convolution(groups: int, has_mask: bool) -> None:
    input, weight = double(2, 4, 4, 5, requires_grad=True), double(2, 4 // groups, 2, 2)
    offset = (0.3 + 0.2 * torch.rand(2, 2 * 2 * 4, 3, 4, dtype=torch.float64)).requires_grad_()
    if has_mask:
        mask, bias = torch.rand(2, 2 * 4, 3, 4, dtype=torch.float64), double(2)
        inputs = (input, offset, mask.requires_grad_(), weight.requires_grad_(), bias)
        inputs[-1].requires_grad_()
        function = partial(_modulated, groups=groups)
    else:
        inputs = (input, offset, weight.requires_grad_())
        function = partial(_plain, groups=groups)
    assert gradcheck(function, inputs)


def _modulated(*inputs: Tensor, groups: int) -> Tensor:
    return mmcv_ops.modulated_deform_conv2d(*inputs, 1, 0, 1, groups, 2)


def _plain(*inputs: Tensor, groups: int) -> Tensor:
    return mmcv_ops.deform_conv2d(*inputs, 1, 0, 1, groups, 2, False, 1)


def test_only_the_weight_needs_a_gradient() -> None:
    input, offset = double(2, 4, 4, 5), double(2, 8, 3, 4)
    weight = double(3, 4, 2, 2, requires_grad=True)
    assert gradcheck(lambda weight: mmcv_ops.deform_conv2d(input, offset, weight), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_numbers_are_computed_in_32(dtype: torch.dtype) -> None:
    input, rois = torch.randn(2, 3, 8, 8).to(dtype), ROIS.to(dtype)
    pooled = mmcv_ops.roi_align(input, rois, (2, 2), 0.25, 2, "avg", True)
    expected = mmcv_ops.roi_align(input.float(), rois.float(), (2, 2), 0.25, 2, "avg", True)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected.to(dtype))
    boxes, scores = torch.rand(20, 4).to(dtype), torch.rand(20).to(dtype)
    keep = torch.ops.torchvision.nms(boxes.float(), scores.float(), 0.5)
    assert torch.equal(mmcv_ops.nms(boxes, scores, 0.5)[1], keep)
    # Areas beyond float16's largest number.
    boxes = (400 * boxes.sort(dim=1).values).round()
    found, expected = (
        mmcv_ops.soft_nms(*each, 0.3) for each in ((boxes, scores), (boxes.float(), scores.float()))
    )
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0].to(dtype))
