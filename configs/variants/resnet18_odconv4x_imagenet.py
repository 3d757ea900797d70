"""ResNet-18 + ODConv with four kernels (4x): 44.90M parameters."""

_base_ = "resnet18_odconv1x_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(kernel_num=4)))
