"""MobileNetV2 with CondConv, eight experts, in its last six blocks and the classifier.

22.96M parameters. The published 22.88M share one routing among the layers of a block, and one bias
among the classifier's experts; here each layer routes by its own input (0.07M) and each expert has
a bias (0.01M). The schedule is mmpretrain's for MobileNetV2.
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
    ),
    head=dict(type="ConvClsHead", conv_cfg=condconv),
)
