"""ResNet-56 with ACBlocks in place of its 3 x 3 convolutions and norms.

The published recipe: 400 epochs, batch 128, cosine decay from 0.2, every norm starting at 1/3.
"""

_base_ = [
    "../_base_/models/cifar10_classifier.py",
    "../_base_/schedules/cifar10_400e.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="SwapConv",
        module=dict(type="CifarResNet", depth=56),
        conv_cfg=dict(type="ACBlock", gamma_init=1 / 3),
        include=r"(^|\.)conv\d\.conv$",
        take_norm=True,
    )
)

optim_wrapper = dict(optimizer=dict(lr=0.2))
