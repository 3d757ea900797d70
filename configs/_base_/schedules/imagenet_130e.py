"""The published recipe: 130 epochs, batch 2,048, SGD, cosine decay with a linear warm-up."""

optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.8, momentum=0.9, weight_decay=1e-4, nesterov=True)
)

# The two factors multiply, as in the published schedule. 3,130 iterations are 5 epochs of
# ImageNet-1k.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.25, by_epoch=False, begin=0, end=3130),
    dict(type="CosineAnnealingLR", T_max=130, by_epoch=True, begin=0, end=130),
]

train_cfg = dict(by_epoch=True, max_epochs=130, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# For another batch size, --auto-scale-lr scales the learning rate in proportion.
auto_scale_lr = dict(base_batch_size=2048, enable=False)
