"""Semantic FPN with RedNet-50 on Cityscapes; the FPN's output convolutions are involutions."""

_base_ = "fpn_rednet50_4xb2-80k_cityscapes-512x1024.py"

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
