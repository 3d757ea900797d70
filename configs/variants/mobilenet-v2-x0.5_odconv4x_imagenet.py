"""MobileNetV2 of width 0.5 + ODConv with four kernels (4x): 4.44M parameters."""

_base_ = "mobilenet-v2_odconv4x_imagenet.py"

model = dict(backbone=dict(module=dict(widen_factor=0.5)))
