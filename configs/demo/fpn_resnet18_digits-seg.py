"""The RedNet-26 demo with a ResNet-18 of similar FLOPs instead."""

_base_ = "fpn_rednet26_digits-seg.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        stem_channels=18,
        base_channels=18,
        zero_init_residual=False,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[18, 36, 72, 144]),
)
