"""A RedNet-50 with 1,000 classes.

Configs that inherit it set backbone.depth and head.num_classes.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="RedNet", depth=50),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
