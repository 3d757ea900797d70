"""ResNet-20 with SPConv at ratio 1/4 in place of its 3 x 3 convolutions, except the first."""

_base_ = "resnet20_spconv2_cifar10.py"

model = dict(backbone=dict(conv_cfg=dict(ratio=1 / 4)))
