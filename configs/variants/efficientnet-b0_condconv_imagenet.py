"""EfficientNet-B0 with CondConv, eight experts, in its last eight blocks.

The layers of a block share the routing of its first, as in the publication. The schedule is
mmpretrain's for batches of 256.
"""

_base_ = [
    "mmpretrain::_base_/models/efficientnet_b0.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=dict(type="CondConv2d", num_experts=8),
        include=r"^layers\.(4\.[345]|5\.\d)\.(expand|depthwise|linear)_conv\.conv$",
        share_routing=r"^layers\.\d\.\d",
    )
)
