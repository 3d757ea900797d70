"""ResNet-50 with SPConv at ratio 1/8 in place of its 3 x 3 convolutions: 16.22M parameters."""

_base_ = "resnet50_spconv2_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(ratio=1 / 8)))
