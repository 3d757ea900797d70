"""ImageNet-1k, or any folder of its form: <data_root>/{train,val}/<class>/*.JPEG.

tools/train.py and tools/test.py let val_dataloader and test_dataloader follow when --cfg-options
changes only the data_root of train_dataloader.
"""

data_root = "data/imagenet"

# RGB means and deviations over ImageNet, of values 0 to 255
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="RandomResizedCrop", scale=224),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]

test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeEdge", scale=256, edge="short"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]

# 32 images a process on 64 GPUs make the batch of 2,048
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CustomDataset", data_root=data_root, data_prefix="train", pipeline=train_pipeline
    ),
)

val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type="Accuracy", topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
