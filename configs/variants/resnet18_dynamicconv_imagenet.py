"""ResNet-18 with dynamic convolution, four kernels: 45.48M parameters.

The published recipe: 100 epochs, batch 256, steps at 30, 60 and 90 epochs, temperature 30 -> 1 over
10 epochs.
"""

_base_ = [
    "mmpretrain::_base_/models/resnet18.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(_base_.model.backbone, zero_init_residual=False),
        conv_cfg=dict(type="DynamicConv2d", num_kernels=4),
        include=r"^layer\d\.",
    )
)

custom_hooks = _base_.custom_hooks + [dict(type="TemperatureAnnealHook")]
