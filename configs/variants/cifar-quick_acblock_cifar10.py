"""Cifar-quick with ACBlocks in place of its 5 x 5 convolutions and norms: 149,226 parameters.

The published recipe: 150 epochs, batch 128, cosine decay from 0.1, every norm starting at 1/3. The
asymmetric kernels are 5 x 1 and 1 x 5; an earlier version of the authors' code has 3 x 1 and 1 x 3.
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
        module=dict(type="CifarQuick"),
        conv_cfg=dict(type="ACBlock", gamma_init=1 / 3),
        include=r"^conv\d\.conv$",
        take_norm=True,
    ),
    neck=dict(
        _delete_=True,
        type="LinearNeck",
        in_channels=576,
        out_channels=64,
        norm_cfg=None,
        act_cfg=dict(type="ReLU"),
    ),
)

param_scheduler = dict(T_max=150, end=150)
train_cfg = dict(max_epochs=150)
