"""ResNet-101 + ODConv with two kernels (2x): 90.44M parameters."""

_base_ = "resnet101_odconv1x_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(kernel_num=2)))
