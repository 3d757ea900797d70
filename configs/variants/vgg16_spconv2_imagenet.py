"""VGG-16 with SPConv at ratio 1/2 in place of its 3 x 3 convolutions, except the first.

With batch norms. The schedule is that of ResNet-50 with SPConv.
"""

_base_ = [
    "mmpretrain::_base_/models/vgg16bn.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=dict(type="SPConv2d", ratio=1 / 2),
        include=r"^features\.\d+\.conv$",
        exclude=r"^features\.0\.",
    )
)

param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
