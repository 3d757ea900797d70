"""A classifier with 10 classes.

Configs that inherit it add a backbone and set head.in_channels. The linear layer starts as PyTorch
initializes it, as in the code of ACNet's authors.
"""

model = dict(
    type="ImageClassifier",
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, init_cfg=None),
)
