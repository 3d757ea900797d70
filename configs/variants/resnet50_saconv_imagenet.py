"""ResNet-50 with SAConv in place of the 3 x 3 convolutions of c3 to c5: 13.71M parameters more.

SAConv starts as the convolution that it replaces. Give the weights of a plain ResNet-50 with
``--cfg-options model.backbone.module.init_cfg.checkpoint=...`` together with
``model.backbone.module.init_cfg.type=Pretrained``, or with ``load_from``.
"""

_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module=dict(_base_.model.backbone, zero_init_residual=False),
        conv_cfg=dict(type="SAConv2d"),
        include=r"^layer[234]\.\d+\.conv2$",
    )
)
