"""ResNet-50 with SPConv at ratio 1/4 in place of its 3 x 3 convolutions: 16.93M parameters."""

_base_ = "resnet50_spconv2_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(ratio=1 / 4)))
