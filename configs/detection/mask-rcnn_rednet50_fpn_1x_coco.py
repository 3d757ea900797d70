"""Mask R-CNN with RedNet-50 on COCO, 12 epochs.

--cfg-options model.backbone.init_cfg.checkpoint=FILE starts from ImageNet weights.
"""

_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        type="RedNet",
        stem_kernel_size=7,
        init_cfg=dict(type="Pretrained", checkpoint=None, prefix="backbone."),
    )
)
