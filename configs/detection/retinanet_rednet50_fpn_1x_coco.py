"""RetinaNet with RedNet-50 on COCO, 12 epochs.

--cfg-options model.backbone.init_cfg.checkpoint=FILE starts from ImageNet weights.
"""

_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        type="RedNet",
        stem_kernel_size=7,
        init_cfg=dict(type="Pretrained", checkpoint=None, prefix="backbone."),
    )
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
