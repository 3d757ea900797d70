"""Mask R-CNN on COCO with ODConv (4 kernels) in ResNet-50, except its stem and shortcuts.

It freezes the backbone's first stages and norms, so it needs an ImageNet checkpoint of the same
ResNet, which you give by

    --cfg-options model.backbone.module.init_cfg.type=Pretrained
        model.backbone.module.init_cfg.checkpoint=FILE
        model.backbone.module.init_cfg.prefix=backbone.

Without it, or with a plain ResNet's, the attention's norms would be frozen untrained: an error.
"""

_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(type="ResNet", depth=50, frozen_stages=1),
        conv_cfg=dict(type="ODConv2d", kernel_num=4),
        include=r"^layer\d\.\d+\.conv\d$",
    )
)
