"""RetinaNet with a narrow RedNet-26 on digits on photographs, for 2 CPU cores."""

_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/datasets/digits_coco.py",
    "../_base_/schedules/demo_detection.py",
    "../_base_/detection.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="RedNet",
        depth=26,
        stem_channels=32,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
    ),
    # levels of stride 8, 16 and 32
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=3, add_extra_convs=False),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16),
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=3, ratios=[1.2, 2.0], strides=[8, 16, 32]
        ),
        reg_decoded_bbox=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    test_cfg=dict(nms_pre=100),
)
