"""A narrow RedNet-26 on 1,797 real handwritten digits, for 2 CPU cores."""

_base_ = ["../_base_/models/rednet_classifier.py", "../_base_/default_runtime.py"]

model = dict(
    backbone=dict(depth=26, stem_channels=32, base_channels=16),
    head=dict(num_classes=10, in_channels=512),
)

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)

train_pipeline = [
    dict(type="Resize", scale=32),
    dict(type="RandomCrop", crop_size=32, padding=3),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="Resize", scale=32), dict(type="PackInputs")]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="Digits", split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Digits", split="val", pipeline=test_pipeline),
)
val_evaluator = dict(type="Accuracy", topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

epochs = 30
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=epochs - 2,
        by_epoch=True,
        begin=2,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=10))
custom_hooks = [dict(type="TrainingCurveHook"), dict(type="ConfusionMatrixHook")]
randomness = dict(seed=0)
