from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from rednet.layers import CondConv2d

pytest.importorskip("mmpretrain", reason="the head is mmpretrain's")


def test_the_classifier_is_the_layer_and_classifies() -> None:
    import mmpretrain.models  # noqa: F401

    config = dict(type="ConvClsHead", num_classes=5, in_channels=8, topk=(1, 2))
    condconv = dict(type="CondConv2d", num_experts=3)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        head = MODELS.build({**config, "conv_cfg": condconv})
        plain = MODELS.build(config)
    assert isinstance(head.fc[1], CondConv2d) and head.topk == (1, 2)
    features = torch.randn(4, 8)
    assert head((features,)).shape == (4, 5)
    expected = features @ plain.fc[1].weight[..., 0, 0].T + plain.fc[1].bias
    torch.testing.assert_close(plain((features,)), expected)
