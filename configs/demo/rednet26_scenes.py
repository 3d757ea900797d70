"""A narrow RedNet-26 on 4,000 handwritten digits on photographs, 48 x 48 pixels, for 1 CPU core.

tools/dataset_converters/make_digits_folder.py data/digits_scenes --scenes makes the data. Networks
differ here that are all right in 99 of 100 cases on the plain digits of rednet26_digits.py.
"""

_base_ = "rednet26_digits.py"

data_root = "data/digits_scenes"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=48, padding=4),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
dataset = dict(_delete_=True, type="CustomDataset", data_root=data_root)
train_dataloader = dict(dataset=dict(**dataset, data_prefix="train", pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=250, dataset=dict(**dataset, data_prefix="val", pipeline=test_pipeline)
)
test_dataloader = dict(
    batch_size=250, dataset=dict(**dataset, data_prefix="test", pipeline=test_pipeline)
)

epochs = 16
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
train_cfg = dict(max_epochs=epochs, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=epochs, save_best=None), logger=dict(interval=8))
custom_hooks = [dict(type="TrainingCurveHook")]
