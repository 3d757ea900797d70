"""ResNet-18 with ACBlocks in place of its 3 x 3 convolutions: 19.03M parameters in training.

tools/model_converters/switch_to_deploy.py fuses the branches of each trained block into one
convolution, fused_conv, inside the block. The published
recipe: 100 epochs, batch 256, cosine decay from 0.1, every branch's batch norm starting at 1.
"""

_base_ = [
    "mmpretrain::_base_/models/resnet18.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_coslr.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=dict(type="ACBlock", gamma_init=1),
        include=r"^layer\d\.\d+\.conv\d$",
    )
)
