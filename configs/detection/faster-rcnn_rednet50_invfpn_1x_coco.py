"""Faster R-CNN with RedNet-50 on COCO; the FPN's output convolutions are 7 x 7 involutions."""

_base_ = "faster-rcnn_rednet50_fpn_1x_coco.py"

model = dict(
    neck=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.neck}},
        conv_cfg=dict(
            type="Involution2d",
            kernel_size=7,
            bias=False,
            init_cfg=dict(type="Xavier", distribution="uniform"),
        ),
        include=r"^fpn_convs\.\d+\.conv$",
    )
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
