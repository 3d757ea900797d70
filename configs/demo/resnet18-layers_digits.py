"""A narrow ResNet-18 with one of RedNet's layers for its 3 x 3 convolutions, on handwritten digits.

``--cfg-options model.backbone.conv_cfg.type=ODConv2d`` chooses another layer.
"""

_base_ = "rednet26_digits.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(type="ResNet_CIFAR", depth=18, stem_channels=16, base_channels=16),
        conv_cfg=dict(type="DynamicConv2d"),
        include=r"^layer\d\.\d\.conv\d$",
    ),
    head=dict(in_channels=128),
)

epochs = 10
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=epochs - 1,
        by_epoch=True,
        begin=1,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs)

# Only the layers that mix their kernels have a temperature; with others the hook says so.
custom_hooks = [
    dict(type="TrainingCurveHook"),
    dict(type="TemperatureAnnealHook", epochs=epochs // 2),
]
