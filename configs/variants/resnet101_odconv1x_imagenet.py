"""ResNet-101 + ODConv with one kernel (1x): 50.82M parameters."""

_base_ = "resnet50_odconv1x_imagenet.py"

model = dict(backbone=dict(module=dict(depth=101)))
