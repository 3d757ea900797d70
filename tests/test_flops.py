from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rednet.flops import count_flops, thop_ops
from rednet.layers import Involution2d
from rednet.layers.base import registered_layers
from rednet.models import RedNet
from rednet.ops import involution2d
from tests.layers.cases import build

# depth: millions of parameters, GFLOPs as published. Both fit a 7 x 7 stem.
PUBLISHED = {
    26: (9.23, 1.73),
    38: (12.39, 2.22),
    50: (15.54, 2.71),
    101: (25.65, 4.74),
    152: (33.99, 6.79),
}


class Classifier(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.backbone = RedNet(depth, stem_kernel_size=7)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(image)[0].mean((2, 3)))


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_published_table(depth: int) -> None:
    parameters, gflops = PUBLISHED[depth]
    costs = count_flops(Classifier(depth), torch.zeros(1, 3, 32, 32))
    assert costs[""].parameters == costs[""].trainable
    assert round(costs[""].parameters / 1e6, 2) == parameters
    # 32 and 224 pixels are halved five times without a remainder: every map has 7 x 7 times as
    # many.
    flops = 7 * 7 * costs["backbone"].published + costs["fc"].published
    assert flops / 1e9 == pytest.approx(gflops, rel=0.003)


def test_a_larger_image_costs_in_proportion() -> None:
    small, large = (
        count_flops(RedNet(26, stem_channels=32, base_channels=16), torch.zeros(1, 3, side, side))[
            ""
        ]
        for side in (32, 224)
    )
    assert large.published == 7 * 7 * small.published
    assert large.macs == 7 * 7 * small.macs


def test_what_each_operator_costs() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 5), padding=(1, 2), stride=2, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 2, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 7),
    )
    cost = count_flops(model, torch.zeros(2, 4, 8, 8))[""]
    assert cost.flops == {
        "convolution": 2 * 6 * 4 * 4 * (2 * 3 * 5) + 2 * 6 * 4 * 4 * (2 * 2 * 2),
        "bias": 2 * 6 * 4 * 4 + 2 * 7,
        "batch norm": 2 * (2 * 6 * 4 * 4),
        "ReLU": 2 * 6 * 4 * 4 + 2 * 2 * 8 * 8,
        "matrix product": 2 * 32 * 7,
    }
    assert cost.macs == cost.flops["convolution"] + cost.flops["matrix product"]
    assert cost.published == sum(cost.flops.values())
    with torch.inference_mode():
        assert count_flops(model, torch.zeros(2, 4, 8, 8))[""] == cost


def test_the_involution_is_counted() -> None:
    layer = Involution2d(32, 32, (3, 5), padding=(1, 2), stride=2, group_channels=8, bias=False)
    cost = count_flops(layer, torch.zeros(3, 32, 9, 7))[""]
    assert cost.flops["involution"] == 3 * 32 * 5 * 4 * (3 * 5)


def test_every_module_has_its_share() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Conv2d(1, 2, 1)))
    model[0].requires_grad_(False)
    costs = count_flops(model, torch.zeros(1, 1, 3, 3))
    assert list(costs) == ["", "0", "1", "1.0"]
    assert [each.macs for each in costs.values()] == [27, 9, 18, 18]
    assert [(each.parameters, each.trainable) for each in costs.values()] == [
        (5, 4),
        (1, 0),
        (4, 4),
        (4, 4),
    ]


def test_a_module_that_is_called_twice_counts_twice() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    assert count_flops(nn.Sequential(layer, layer), torch.zeros(1, 1, 2, 2))[""].macs == 8


def test_pytorchs_counter_knows_the_operator_and_its_gradients() -> None:
    input = torch.randn(2, 32, 9, 11, requires_grad=True)
    weight = torch.randn(2, 2, 3, 5, 5, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = involution2d(input, weight, stride=2, padding=(1, 2))
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * output.numel() * 15
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("name", registered_layers())
def test_thop_counts_what_a_layer_computes(name: str) -> None:
    def count(module: nn.Module, *_: object) -> None:
        module.total_ops += 1

    model, image = nn.Sequential(build(name, 16, 16, 3)).eval(), torch.zeros(2, 16, 12, 12)
    expected = count_flops(model, image)[""].macs
    for module in model.modules():  # as thop does
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        if type(module) is nn.Conv2d:
            module.register_forward_hook(count)
        elif type(module) in thop_ops():
            module.register_forward_hook(thop_ops()[type(module)])
    model(image)
    counted = sum(module.total_ops.item() for module in model.modules())
    assert counted == expected
