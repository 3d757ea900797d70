"""mmdet's stock models on mmcv's operators: a loss with gradients, and a prediction."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("mmdet")
import rednet  # noqa: E402, F401  (offers the operators)
from tests.mmcv_ops.compare_with_compiled import (  # noqa: E402
    BATCHES,
    build,
    our_operators,
    results,
)

# The operators that each model is here for.
MODELS: dict[str, set[str]] = {
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco": {"nms", "roi_align_backward"},
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco": set(),
    "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco": {"softnms"},
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco": {"roi_align_backward"},
    "reppoints/reppoints-moment_r50_fpn_1x_coco": {"deform_conv_backward_input"},
    "guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco": {
        "deform_conv_backward_parameters",
        "masked_im2col_forward",
    },
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco": {"carafe_backward", "roi_align_backward"},
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": {"deform_roi_pool_backward"},
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": {"modulated_deform_conv_backward"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loss_with_gradients_and_a_prediction(name: str) -> None:
    model = build(name, most_boxes=5)  # a mask of each of 100 takes seconds
    images, _ = BATCHES.get(name, (2, 128))
    with our_operators() as called:
        found = results(model, images, side=64)
    assert MODELS[name] <= called
    assert all(torch.isfinite(value).all() for value in found.values())
    trained = [each for each in model.parameters() if each.requires_grad]
    assert all(each.grad is not None for each in trained)
    assert len(found["scores 0"]) > 0
