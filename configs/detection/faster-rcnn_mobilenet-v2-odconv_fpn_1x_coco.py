"""Faster R-CNN on COCO with ODConv (4 kernels) in all convolutions of MobileNetV2 but the first.

It freezes the backbone's first stages and norms, so it needs an ImageNet checkpoint of
configs/variants/mobilenet-v2_odconv4x_imagenet.py, which you give by

    --cfg-options model.backbone.module.init_cfg.type=Pretrained
        model.backbone.module.init_cfg.checkpoint=FILE
        model.backbone.module.init_cfg.prefix=backbone.

Without it, the attention's norms would be frozen untrained: an error.
"""

_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "../_base_/detection.py"]

custom_imports = dict(imports=["rednet", "mmpretrain.models"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        # mmpretrain's, whose names the checkpoint of the classifier has; mmdet's has others.
        module=dict(
            type="mmpretrain.MobileNetV2",
            out_indices=(1, 2, 4, 7),
            frozen_stages=2,
            norm_eval=True,
        ),
        conv_cfg=dict(type="ODConv2d", kernel_num=4),
        include=r"^(layer\d\.\d+|conv2)\.",
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
