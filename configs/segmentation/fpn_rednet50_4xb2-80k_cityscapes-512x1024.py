"""Semantic FPN with RedNet-50 on Cityscapes, 80,000 iterations of 8 crops.

--cfg-options model.backbone.init_cfg.checkpoint=FILE starts from ImageNet weights.
"""

_base_ = [
    "mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py",
    "../_base_/segmentation.py",
]

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="RedNet",
        depth=50,
        stem_kernel_size=7,
        out_indices=(0, 1, 2, 3),
        norm_cfg={{_base_.model.backbone.norm_cfg}},
        init_cfg=dict(type="Pretrained", checkpoint=None, prefix="backbone."),
    ),
)
