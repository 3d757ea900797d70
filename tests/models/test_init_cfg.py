from __future__ import annotations

from typing import Any

import pytest
from mmengine.model import PretrainedInit

from rednet.models.init_cfg import loads_checkpoint

PRETRAINED: dict[str, Any] = dict(type="Pretrained", checkpoint="a.pth")
KAIMING: dict[str, Any] = dict(type="Kaiming", layer="Conv2d")


@pytest.mark.parametrize(
    "init_cfg",
    [PRETRAINED, [PRETRAINED], [KAIMING, PRETRAINED], dict(PRETRAINED, type=PretrainedInit)],
)
def test_a_checkpoint_is_seen(init_cfg: Any) -> None:
    assert loads_checkpoint(init_cfg)


@pytest.mark.parametrize("init_cfg", [None, [], KAIMING, [KAIMING]])
def test_no_checkpoint_is_seen(init_cfg: Any) -> None:
    assert not loads_checkpoint(init_cfg)
