"""mmcv's operators against results of compiled mmcv 2.1, see tests/golden/mmcv_ops/README.md."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision")
import rednet  # noqa: E402, F401  (offers the operators)

mmcv_ops = pytest.importorskip("mmcv.ops")

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "mmcv_ops"
VECTORS = {path.stem: path for path in sorted(FOLDER.glob("*.npz"))}
# Sums in another order: some units of float32's rounding.
TOLERANCE = 5e-6


def load(name: str) -> dict[str, Any]:
    with np.load(VECTORS[name], allow_pickle=False) as file:
        return {
            key: torch.from_numpy(value) if value.ndim else value.item()
            for key, value in dict(file).items()
        }


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, what
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), what
        return
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"{what}: off by {error:.2g}"


def named(prefix: str) -> list[str]:
    names = [name for name in VECTORS if name.startswith(prefix)]
    assert names
    return names


@pytest.mark.parametrize("name", named("nms"))
def test_nms(name: str) -> None:
    given = load(name)
    dets, keep = mmcv_ops.nms(
        given["boxes"],
        given["scores"],
        given["iou_threshold"],
        given["offset"],
        given["score_threshold"],
        given["max_num"],
    )
    assert_equal(keep, given["keep"], "keep")
    assert_equal(dets, given["dets"], "dets")


@pytest.mark.parametrize("name", named("batched_nms"))
def test_batched_nms(name: str) -> None:
    given = load(name)
    cfg = ast.literal_eval(given["cfg"])
    dets, keep = mmcv_ops.batched_nms(given["boxes"], given["scores"], given["labels"], cfg)
    assert_equal(keep, given["keep"], "keep")
    assert_equal(dets, given["dets"], "dets")


@pytest.mark.parametrize("name", named("soft_nms"))
def test_soft_nms(name: str) -> None:
    given = load(name)
    dets, keep = mmcv_ops.soft_nms(
        given["boxes"],
        given["scores"],
        given["iou_threshold"],
        given["sigma"],
        given["min_score"],
        given["method"],
        given["offset"],
    )
    assert_equal(keep, given["keep"], "keep")
    assert_equal(dets, given["dets"], "dets")


@pytest.mark.parametrize("name", named("roi_align"))
def test_roi_align(name: str) -> None:
    given = load(name)
    size = given["output_size"]
    size = tuple(size.tolist()) if isinstance(size, Tensor) else size
    x = given["x"].requires_grad_()
    y = mmcv_ops.roi_align(
        x,
        given["rois"],
        size,
        given["spatial_scale"],
        given["sampling_ratio"],
        given["pool_mode"],
        bool(given["aligned"]),
    )
    assert_equal(y, given["y"], "y")
    (grad,) = torch.autograd.grad(y, x, given["cot"])
    assert_equal(grad, given["grad_x"], "grad_x")


@pytest.mark.parametrize("name", named("deform_conv"))
def test_deform_conv(name: str) -> None:
    given = load(name)
    names = [each for each in ("x", "offset", "mask", "weight", "bias") if each in given]
    tensors = [given[each].requires_grad_() for each in names]
    window = [
        value.tolist() if isinstance(value, Tensor) else value
        for value in (given[each] for each in ("stride", "padding", "dilation"))
    ]
    function = mmcv_ops.modulated_deform_conv2d if "mask" in given else mmcv_ops.deform_conv2d
    y = function(*tensors, *window, given["groups"], given["deform_groups"])
    assert_equal(y, given["y"], "y")
    for each, grad in zip(names, torch.autograd.grad(y, tensors, given["cot"]), strict=True):
        assert_equal(grad, given[f"grad_{each}"], each)
