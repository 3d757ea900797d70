"""ResNet-18 with ACBlocks in place of its 3 x 3 convolutions and norms: 19.03M parameters.

tools/model_converters/switch_to_deploy.py fuses each trained block into a plain convolution, so
that the checkpoint has the keys of a fused ResNet-18. The published recipe: 100 epochs, batch 256,
cosine decay from 0.1, every norm starting at 1.
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
        module=dict(_base_.model.backbone, zero_init_residual=False),
        conv_cfg=dict(type="ACBlock", gamma_init=1),
        include=r"^layer\d\.\d+\.conv\d$",
        take_norm=True,
    )
)

# The learning rate of a bias, those of the norms included, is twice that of other parameters.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=2))))
