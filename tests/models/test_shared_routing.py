"""Blocks whose layers share one routing, as in the published CondConv."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rednet.errors import ArgumentError
from rednet.models import swap_conv

CONDCONV = dict(type="CondConv2d", num_experts=4)


def blocks() -> nn.Sequential:
    """Two blocks of two convolutions."""
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3)) for _ in range(2)))


def test_each_block_has_one_routing() -> None:
    model = swap_conv(blocks(), CONDCONV, share_routing=r"^\d")
    routings = [name for name in model.state_dict() if name.endswith("routing_fn.weight")]
    assert routings == ["0.0.routing_fn.weight", "1.0.routing_fn.weight"]
    model(torch.randn(2, 6, 9, 9)).sum().backward()
    assert all(each.grad is not None for each in model.parameters())


def test_a_layer_alone_in_its_block_routes_itself() -> None:
    model = swap_conv(blocks(), CONDCONV, include=r"^0|^1\.1", share_routing=r"^\d")
    assert "1.1.routing_fn.weight" in model.state_dict()
    model(torch.randn(2, 6, 9, 9))


def test_plain_weights_load_into_a_shared_block() -> None:
    plain = blocks().double().eval()
    model = swap_conv(blocks(), CONDCONV, share_routing=r"^\d").double().eval()
    model.load_state_dict(plain.state_dict())
    image = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(model(image), plain(image))


@pytest.mark.parametrize(
    ("conv_cfg", "pattern", "message"),
    [
        (dict(type="ODConv2d"), r"^\d", "share_routing matches 0.0, a ODConv2d: only CondConv2d"),
        (CONDCONV, r"^\d\.\d", "must match several layers of a block with the same text"),
        (CONDCONV, "layer", "it matches none"),
        (CONDCONV, "(", "share_routing must be a regular expression"),
    ],
)
def test_what_cannot_be_shared_is_refused(conv_cfg: dict, pattern: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        swap_conv(blocks(), conv_cfg, share_routing=pattern)
    assert message in str(caught.value)
