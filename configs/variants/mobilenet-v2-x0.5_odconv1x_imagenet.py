"""MobileNetV2 of width 0.5 + ODConv with one kernel (1x): 2.43M parameters."""

_base_ = "mobilenet-v2_odconv1x_imagenet.py"

model = dict(backbone=dict(module=dict(widen_factor=0.5)))
