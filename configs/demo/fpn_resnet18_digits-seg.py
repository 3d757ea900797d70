"""The RedNet-26 demo with a ResNet-18 of similar FLOPs instead, from resnet18_digits.py."""

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
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/resnet18_digits/epoch_30.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[18, 36, 72, 144]),
)
