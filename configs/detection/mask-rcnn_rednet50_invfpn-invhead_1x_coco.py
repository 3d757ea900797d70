"""Mask R-CNN with RedNet-50 on COCO; involutions in FPN, RPN and mask head."""

_base_ = "mask-rcnn_rednet50_invfpn_1x_coco.py"

model = dict(
    rpn_head=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.rpn_head}},
        conv_cfg=dict(type="Involution2d", kernel_size=7, bias=False),
        include=r"^rpn_conv$",
    ),
    roi_head=dict(
        mask_head=dict(
            _delete_=True,
            type="SwapConv",
            module={{_base_.model.roi_head.mask_head}},
            conv_cfg=dict(type="Involution2d", kernel_size=7, bias=False),
            include=r"^convs\.\d+\.conv$",
        )
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
