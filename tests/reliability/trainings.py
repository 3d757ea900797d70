"""Short trainings of each kind, as config files."""

from __future__ import annotations

from pathlib import Path

from forked_commands import ROOT

from rednet.datasets.digits_coco import write_digits_coco

EPOCHS = 3
_CLASSIFIER = """
train_dataloader = dict(batch_size=8, num_workers={workers}, dataset=dict(indices=48))
val_dataloader = dict(batch_size=16, dataset=dict(indices=16))
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="auto"))
"""
_REDNET = """
_base_ = ["{root}/configs/demo/rednet26_digits.py"]
"""
_ODCONV = """
_base_ = ["{root}/configs/demo/resnet18-layers_digits.py"]
model = dict(backbone=dict(conv_cfg=dict(type="ODConv2d")))
custom_hooks = [dict(type="TemperatureAnnealHook", epochs=2)]
"""
_DETECTOR = """
_base_ = ["{root}/configs/demo/faster-rcnn_rednet26_digits.py"]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    batch_size=2, dataset=dict(data_root="{data}/", pipeline=train_pipeline))
val_dataloader = dict(batch_size=2, dataset=dict(data_root="{data}/"))
val_evaluator = dict(ann_file="{data}/annotations/instances_val.json")
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
"""
KINDS = {
    "RedNet-26, augmented, 2 workers": _REDNET + _CLASSIFIER + "custom_hooks = []\n",
    "ODConv ResNet-18 with temperature": _ODCONV + _CLASSIFIER,
    "RedNet-26 with EMA": _REDNET + _CLASSIFIER + "custom_hooks = [dict(type='EMAHook')]\n",
    "Faster R-CNN": _DETECTOR,
}


def write(folder: Path) -> dict[str, Path]:
    """Writes the configs, and the detector's data; returns the files by kind."""
    write_digits_coco(folder / "data", dict(train=8, val=2), (64, 64))
    files = {}
    for number, (kind, text) in enumerate(KINDS.items()):
        files[kind] = folder / f"kind_{number}.py"
        workers = 2 if "workers" in kind else 0
        values = dict(root=ROOT, data=folder / "data", epochs=EPOCHS, workers=workers)
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        files[kind].write_text(text)
    return files
