"""Faster R-CNN on COCO with SPConv (ratio 1/2) for the 3 x 3 convolutions of ResNet-50.

It freezes the backbone's first stages and norms, so it needs an ImageNet checkpoint of the same
ResNet, which you give by

    --cfg-options model.backbone.module.init_cfg.type=Pretrained
        model.backbone.module.init_cfg.checkpoint=FILE
        model.backbone.module.init_cfg.prefix=backbone.

Without it, or with a plain ResNet's, its norms would be frozen untrained: an error.
"""

_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(type="ResNet", depth=50, frozen_stages=1),
        conv_cfg=dict(type="SPConv2d", ratio=1 / 2),
        include=r"^layer\d\.\d+\.conv2$",
    )
)
