"""MobileNetV2 with CondConv, eight experts, in its last six blocks and the classifier.

The layers of a block share the routing of its first, and the classifier's experts one bias, as in
the published network. The schedule is mmpretrain's for MobileNetV2.
"""

_base_ = [
    "mmpretrain::_base_/models/mobilenet_v2_1x.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_epochstep.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

condconv = dict(type="CondConv2d", num_experts=8)
model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=condconv,
        include=r"^layer(5\.[12]|6\.\d|7\.0)\.",
        share_routing=r"^layer\d\.\d",
    ),
    head=dict(type="ConvClsHead", conv_cfg=dict(condconv, expert_bias=False)),
)
