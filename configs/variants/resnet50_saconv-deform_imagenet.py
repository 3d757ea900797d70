"""ResNet-50 with deformable SAConv in c3 to c5: 14.87M parameters more. It needs mmcv.ops."""

_base_ = "resnet50_saconv_imagenet.py"

model = dict(backbone=dict(conv_cfg=dict(use_deform=True)))
