"""The RedNet-26 demo on photographs with a ResNet-18 of similar FLOPs instead."""

_base_ = "rednet26_scenes.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        stem_channels=18,
        base_channels=18,
        zero_init_residual=False,
    ),
    head=dict(in_channels=144),
)
