"""Cascade R-CNN on COCO with ResNeXt-101 (64x4d) in DetectoRS's style, from plain ImageNet weights.

The 3 x 3 convolutions of stages c3 to c5 are deformable switchable atrous ones, all others are
weight-standardized.
"""

_base_ = ["mmdet::cascade_rcnn/cascade-rcnn_x101-64x4d_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(
            type="SwapConv",
            module={{_base_.model.backbone}},
            conv_cfg=dict(type="SAConv2d", use_deform=True),
            include=r"^layer[2-4]\.\d+\.conv2$",
        ),
        conv_cfg=dict(type="ConvAWS2d"),
    )
)
