"""MobileNetV2 of width 0.75 + ODConv with one kernel (1x): 3.51M parameters."""

_base_ = "mobilenet-v2_odconv1x_imagenet.py"

model = dict(backbone=dict(module=dict(widen_factor=0.75)))
