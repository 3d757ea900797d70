"""Faster R-CNN with a narrow RedNet-26 on digits on photographs, for 2 CPU cores."""

_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/datasets/digits_coco.py",
    "../_base_/schedules/demo_detection.py",
    "../_base_/detection.py",
]

# mmdet's 1,000 to 2,000 proposals per image would take most of the time
proposals = dict(nms_pre=100, max_per_img=50)
model = dict(
    backbone=dict(
        _delete_=True,
        type="RedNet",
        depth=26,
        stem_channels=32,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(
            base_sizes=[22, 30, 42, 50], scales=[1], ratios=[1.2, 2.0], strides=[4, 8, 16, 32]
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=48, featmap_strides=[4]
        ),
        # One box regression for all classes learns from all objects.
        bbox_head=dict(
            in_channels=48, fc_out_channels=256, num_classes=10, reg_class_agnostic=True
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=proposals,
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=proposals),
)
