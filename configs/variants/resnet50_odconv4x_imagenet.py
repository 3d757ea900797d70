"""ResNet-50 + ODConv with four kernels (4x): 90.67M parameters."""

_base_ = "resnet50_odconv1x_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(kernel_num=4)))
