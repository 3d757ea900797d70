"""The RetinaNet of ResNet-18 with switchable atrous convolutions in its last two stages."""

_base_ = "retinanet_resnet18_digits.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(
            type="ResNet",
            depth=18,
            norm_eval=False,
            stem_channels=18,
            base_channels=18,
            out_indices=(0, 1, 2, 3),
        ),
        conv_cfg=dict(type="SAConv2d"),
        include=r"^layer[34]\.\d\.conv\d$",
    ),
)
