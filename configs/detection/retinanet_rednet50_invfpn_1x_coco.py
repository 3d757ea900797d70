"""RetinaNet with RedNet-50 on COCO; the FPN's output convolutions are 7 x 7 involutions."""

_base_ = "retinanet_rednet50_fpn_1x_coco.py"

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
        # The two extra levels of stride 2, fpn_convs 3 and 4, stay convolutions.
        include=r"^fpn_convs\.[0-2]\.conv$",
    )
)

optim_wrapper = dict(clip_grad=dict(max_norm=40, norm_type=2))
