"""VGG-16 with SPConv at ratio 1/2 in place of its 3 x 3 convolutions, except the first.

One hidden layer of 512 and batch norms, which give the published parameters. The schedule is
mmpretrain's for CIFAR-10: the authors only say that theirs is a default one.
"""

_base_ = [
    "../_base_/models/cifar10_vgg16.py",
    "mmpretrain::_base_/schedules/cifar10_bs128.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        conv_cfg=dict(type="SPConv2d", ratio=1 / 2),
        include=r"^features\.\d+\.conv$",
        exclude=r"^features\.0\.",
    )
)
