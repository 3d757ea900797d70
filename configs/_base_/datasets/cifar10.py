"""CIFAR-10 in batches of 128, as ACNet's authors train on it: padded, cropped and flipped.

Nothing is downloaded unless train_dataloader.dataset.download=True asks for it.
"""

_base_ = "mmpretrain::_base_/datasets/cifar10_bs16.py"

# Values of 0 to 255 become -1 to 1.
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

train_dataloader = dict(batch_size=128, dataset=dict(download=False))
val_dataloader = dict(batch_size=128, dataset=dict(download=False))
test_dataloader = val_dataloader
