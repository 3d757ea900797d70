"""ResNet-50 with ACBlocks in place of its 3 x 3 convolutions and norms, in ResNet-18's recipe."""

_base_ = "resnet18_acblock_imagenet.py"

model = dict(
    backbone=dict(module=dict(depth=50), include=r"^layer\d\.\d+\.conv2$"),
    head=dict(in_channels=2048),
)
