from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

pytest.importorskip("mmpretrain", reason="the head is mmpretrain's")


def test_it_is_the_linear_head_with_dropout_in_training() -> None:
    import mmpretrain.models  # noqa: F401

    config = dict(num_classes=5, in_channels=512, topk=(1, 2))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        head = MODELS.build(dict(type="DropoutClsHead", dropout=0.5, **config))
        plain = MODELS.build(dict(type="LinearClsHead", **config))
        head.init_weights()
    assert 0.009 < head.fc.weight.std() < 0.011, "LinearClsHead's own initialization"
    head.load_state_dict(plain.state_dict(), strict=True)
    assert head.topk == (1, 2)
    features = (torch.ones(1000, 512),)
    torch.testing.assert_close(head.eval()(features), plain.eval()(features))
    dropped = head.train()(features)
    assert dropped.std(0).min() > 0
    torch.testing.assert_close(dropped.mean(0), plain(features)[0], rtol=0, atol=0.1)


def test_a_bad_share_is_refused() -> None:
    import mmpretrain.models  # noqa: F401

    with (
        DefaultScope.overwrite_default_scope("mmpretrain"),
        pytest.raises(ValueError, match="between 0 and 1, but got 1.5"),
    ):
        MODELS.build(dict(type="DropoutClsHead", dropout=1.5, num_classes=5, in_channels=8))
