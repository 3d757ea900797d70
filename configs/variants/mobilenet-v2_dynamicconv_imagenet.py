"""MobileNetV2 with dynamic convolution, four kernels, in all convolutions except the first.

The published recipe: 300 epochs, cosine decay from 0.05, weight decay 4e-5, temperature 30 -> 1
over 10 epochs.
"""

_base_ = "mobilenet-v2_odconv1x_imagenet.py"

model = dict(
    backbone=dict(conv_cfg=dict(_delete_=True, type="DynamicConv2d", num_kernels=4)),
)

param_scheduler = dict(T_max=300, end=300)
train_cfg = dict(max_epochs=300)
