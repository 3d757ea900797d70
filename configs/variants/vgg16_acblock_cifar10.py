"""VGG-16 with ACBlocks in place of its 3 x 3 convolutions and norms, for CIFAR-10.

One hidden layer of 512. The published recipe: 400 epochs, batch 128, cosine decay from 0.1, every
norm starting at 1/3.
"""

_base_ = [
    "../_base_/models/cifar10_vgg16.py",
    "../_base_/schedules/cifar10_400e.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        conv_cfg=dict(type="ACBlock", gamma_init=1 / 3),
        include=r"^features\.\d+\.conv$",
        take_norm=True,
    )
)
