"""Semantic FPN with a narrow RedNet-26 on digits on photographs, for 2 CPU cores.

The backbone starts from the classifier of rednet26_digits.py, as one for Cityscapes starts from
ImageNet's. To train without it: --cfg-options model.backbone.init_cfg=None
"""

_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/datasets/digits_seg.py",
    "../_base_/schedules/demo_detection.py",
    "../_base_/segmentation.py",
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="RedNet",
        depth=26,
        stem_channels=32,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/rednet26_digits/epoch_30.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=48, norm_cfg=dict(type="BN")),
    decode_head=dict(
        in_channels=[48, 48, 48, 48],
        channels=48,
        num_classes=11,
        dropout_ratio=0,
        norm_cfg=dict(type="BN"),
        # A digit's pixel counts four times as much as one of the background, which is 0.81 of all
        # pixels; the mean weight is 1. mmseg's own mean fails where pixels are ignored.
        loss_decode=dict(class_weight=[0.65] + 10 * [2.6], reduction="none"),
    ),
)

# mmseg has them in its schedules, by iteration.
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="SafeCheckpointHook", interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
log_processor = dict(by_epoch=True)
env_cfg = dict(cudnn_benchmark=False)

# The strokes are found soon. Telling the digits apart takes hundreds of iterations more, and fewer
# with SGD than with AdamW (docs/results/segmentation.md).
epochs = 11
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type="SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
