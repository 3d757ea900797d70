"""Faster R-CNN with RedNet-50 on COCO; involutions in FPN and RPN."""

_base_ = "faster-rcnn_rednet50_invfpn_1x_coco.py"

model = dict(
    rpn_head=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.rpn_head}},
        conv_cfg=dict(type="Involution2d", kernel_size=7, bias=False),
        include=r"^rpn_conv$",
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
