"""RetinaNet on COCO with ACBlocks in place of ResNet-50's 3 x 3 convolutions and their norms.

It starts from plain ImageNet weights, as RetinaNet does; an ACBlock then computes what the
convolution and its norm computed, and training wakes its thin kernels. Fused by
switch_to_deploy.py, it is as fast as a plain RetinaNet.
"""

_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "../_base_/detection.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwapConv",
        module={{_base_.model.backbone}},
        conv_cfg=dict(type="ACBlock"),
        include=r"^layer\d\.\d+\.conv2$",
        take_norm=True,
    )
)
