"""MobileNetV2 + ODConv with four kernels (4x): 11.51M parameters."""

_base_ = "mobilenet-v2_odconv1x_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(kernel_num=4)))
