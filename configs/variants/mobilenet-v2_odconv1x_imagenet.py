"""MobileNetV2 + ODConv with one kernel (1x): 4.94M parameters.

The published recipe: 150 epochs, batch 256, cosine decay from 0.05, weight decay 4e-5, temperature
30 -> 1 over 10 epochs, dropout before the classifier. The rate of 0.2 is published for four
kernels.
"""

_base_ = [
    "mmpretrain::_base_/models/mobilenet_v2_1x.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_epochstep.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=dict(type="ODConv2d", kernel_num=1),
        # All convolutions except the first.
        include=r"^(layer\d\.\d+|conv2)\.",
    ),
    head=dict(type="DropoutClsHead", dropout=0.2),
)

optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=4e-5))
param_scheduler = dict(
    _delete_=True, type="CosineAnnealingLR", T_max=150, by_epoch=True, begin=0, end=150
)
train_cfg = dict(max_epochs=150)
custom_hooks = _base_.custom_hooks + [dict(type="TemperatureAnnealHook")]
