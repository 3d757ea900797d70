_base_ = [
    "_base_/models/rednet_classifier.py",
    "_base_/datasets/imagenet.py",
    "_base_/schedules/imagenet_130e.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(depth=26))
