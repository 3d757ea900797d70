"""The recipe of ACNet's authors: 400 epochs, batch 128, SGD, cosine decay from 0.1 to 0."""

# The learning rate of a bias, those of the norms included, is twice that of other parameters.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=2))),
)
param_scheduler = dict(
    type="CosineAnnealingLR",
    T_max=400,
    by_epoch=True,
    begin=0,
    end=400,
    convert_to_iter_based=True,
)

train_cfg = dict(by_epoch=True, max_epochs=400, val_interval=5)
val_cfg = dict()
test_cfg = dict()

# For another batch size, --auto-scale-lr scales the learning rate in proportion.
auto_scale_lr = dict(base_batch_size=128, enable=False)
