"""The classifier demo with a ResNet-18 instead of RedNet-26, of similar FLOPs."""

_base_ = "rednet26_digits.py"

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
