"""ResNet-50 with SPConv at ratio 1/2 in place of its 3 x 3 convolutions: 18.34M parameters.

The published recipe: 90 epochs, batch 256, learning rate 0.1 divided by 10 every 30 epochs.
"""

_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(_base_.model.backbone, zero_init_residual=False),
        conv_cfg=dict(type="SPConv2d", ratio=1 / 2),
        include=r"^layer\d\.\d+\.conv2$",
    )
)

param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
