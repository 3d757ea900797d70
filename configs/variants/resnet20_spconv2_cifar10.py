"""ResNet-20 with SPConv at ratio 1/2 in place of its 3 x 3 convolutions, except the first.

The schedule is mmpretrain's for CIFAR-10: the authors only say that theirs is a default one.
"""

_base_ = [
    "../_base_/models/cifar10_classifier.py",
    "mmpretrain::_base_/schedules/cifar10_bs128.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="SwapConv",
        module=dict(type="CifarResNet", depth=20),
        conv_cfg=dict(type="SPConv2d", ratio=1 / 2),
        include=r"^layer\d\.\d+\.conv\d\.conv$",
    )
)
