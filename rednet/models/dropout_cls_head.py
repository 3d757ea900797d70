"""A classification head with dropout before its classifier."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rednet.registry import MODELS


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input.

    Its state_dict is ``nn.Linear``'s, so any classifier's weights load.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        dropout: Probability of dropping an input element in training.

    Raises:
        ValueError: If ``dropout`` is not between 0 and 1.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        self.dropout = nn.Dropout(dropout).p

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return super().forward(F.dropout(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        """``nn.Linear``'s description and the probability."""
        return f"{super().extra_repr()}, dropout={self.dropout}"


@MODELS.register_module(name="DropoutClsHead")
def build_dropout_cls_head(
    num_classes: int, in_channels: int, dropout: float = 0.2, **head_cfg: Any
) -> nn.Module:
    """Builds mmpretrain's ``LinearClsHead`` with dropout before its linear layer.

    ODConv's publication trains its ResNets with it, torchvision its MobileNets.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        dropout: Probability of dropping a feature in training.
        **head_cfg: Further arguments of ``LinearClsHead``, such as ``loss``.

    Returns:
        The head, with the keys of a ``LinearClsHead``.

    Raises:
        KeyError: If mmpretrain is not installed.
        ValueError: If ``dropout`` is not between 0 and 1.
    """
    config = dict(num_classes=num_classes, in_channels=in_channels, **head_cfg)
    head = MODELS.build(dict(type="mmpretrain.LinearClsHead", **config))
    head.fc = DropoutLinear(in_channels, num_classes, dropout)
    return head
