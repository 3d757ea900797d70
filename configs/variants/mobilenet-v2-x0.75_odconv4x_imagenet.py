"""MobileNetV2 of width 0.75 + ODConv with four kernels (4x): 7.50M parameters."""

_base_ = "mobilenet-v2_odconv4x_imagenet.py"

model = dict(backbone=dict(module=dict(widen_factor=0.75)))
