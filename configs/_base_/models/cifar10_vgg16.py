"""VGG-16 with batch norms and one hidden layer of 512, whose convolutions a config swaps."""

_base_ = "cifar10_classifier.py"

model = dict(
    backbone=dict(type="SwapConv", module=dict(type="VGG", depth=16, norm_cfg=dict(type="BN"))),
    neck=dict(
        _delete_=True,
        type="LinearNeck",
        in_channels=512,
        out_channels=512,
        norm_cfg=None,
        act_cfg=dict(type="ReLU"),
    ),
    head=dict(in_channels=512),
)
