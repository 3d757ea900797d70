"""ResNet-18 + ODConv with one kernel (1x): 11.94M parameters.

The published recipe: 100 epochs, batch 256, steps at 30, 60 and 90 epochs, temperature 30 -> 1 over
10 epochs, dropout before the classifier. The rate of 0.2 is published for four kernels.
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
        conv_cfg=dict(type="ODConv2d", kernel_num=1),
        # All convolutions except the stem and the shortcuts'.
        include=r"^layer\d\.\d+\.conv\d$",
    ),
    head=dict(type="DropoutClsHead", dropout=0.2),
)

custom_hooks = _base_.custom_hooks + [dict(type="TemperatureAnnealHook")]
