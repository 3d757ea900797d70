"""WRN-16-8 with ACBlocks in place of its 3 x 3 convolutions. The norms come before: they stay.

The published recipe: 400 epochs, batch 128, cosine decay from 0.1, weight decay 5e-4. The norms of
every block start at 1/3, which the recipe sets; in the authors' code it only reaches the stem.
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
        module=dict(type="WideResNet", depth=16, widen_factor=8),
        conv_cfg=dict(type="ACBlock", gamma_init=1 / 3),
        include=r"(^|\.)conv\d\.conv$",
    ),
    head=dict(in_channels=512),
)

optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
