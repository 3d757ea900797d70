"""Checkpoints of timm's EfficientNet with CondConv load into the config here."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from rednet.checkpoint.published import convert
from rednet.cli.model import build_with_stem

pytest.importorskip("mmpretrain", reason="the classifiers are mmpretrain's")
CONFIG = Path(__file__).parents[2] / "configs/variants/efficientnet-b0_condconv_imagenet.py"
# Blocks of timm's stages, and the stage and number here of the first of each.
STAGES = ((1, "1.0"), (2, "2.0"), (2, "3.0"), (3, "4.0"), (3, "4.3"), (4, "5.0"), (1, "5.4"))
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCK = {
    "conv_pw": "expand_conv.conv",
    "bn1": "expand_conv.bn",
    "conv_dw": "depthwise_conv.conv",
    "bn2": "depthwise_conv.bn",
    "se.conv_reduce": "se.conv1.conv",
    "se.conv_expand": "se.conv2.conv",
    "conv_pwl": "linear_conv.conv",
    "bn3": "linear_conv.bn",
    "routing_fn": "expand_conv.conv.routing_fn",
}
FIRST_BLOCK = {
    "conv_dw": "depthwise_conv.conv",
    "bn1": "depthwise_conv.bn",
    "se.conv_reduce": "se.conv1.conv",
    "se.conv_expand": "se.conv2.conv",
    "conv_pw": "linear_conv.conv",
    "bn2": "linear_conv.bn",
}


def modules() -> dict[str, str]:
    """Names here of timm's modules."""
    names = {
        "conv_stem": "backbone.layers.0.conv",
        "bn1": "backbone.layers.0.bn",
        "conv_head": "backbone.layers.6.conv",
        "bn2": "backbone.layers.6.bn",
        "classifier": "head.fc",
    }
    for stage, (blocks, begin) in enumerate(STAGES):
        layer, first = map(int, begin.split("."))
        for block in range(blocks):
            for timm, own in (BLOCK if stage else FIRST_BLOCK).items():
                here = f"backbone.layers.{layer}.{first + block}.{own}"
                names[f"blocks.{stage}.{block}.{timm}"] = here
    return names


@cache
def own_state() -> dict[str, Tensor]:
    return build_with_stem(Config.fromfile(CONFIG), None).state_dict()


def published() -> dict[str, Tensor]:
    """A file with random values, as timm writes it: experts are rows."""
    state = {}
    for timm, own in modules().items():
        for entry in ("weight", "bias", *NORM[2:]):
            value = own_state().get(f"{own}.{entry}")
            if value is not None:
                value = torch.rand_like(value) if value.is_floating_point() else value
                state[f"{timm}.{entry}"] = value.flatten(1) if value.dim() == 5 else value
    return state


def test_a_checkpoint_of_timm_is_renamed() -> None:
    state = published()
    result = convert(state, partial(build_with_stem, Config.fromfile(CONFIG)))
    assert not result.refused and not result.missing
    assert {name.rpartition(".")[2] for name in result.added} == {"temperature"}
    assert len(result.renamed) == len(state) == len(own_state()) - len(result.added)
    assert {name: value.shape for name, value in result.state_dict.items()} == {
        name: value.shape for name, value in own_state().items()
    }
    for name, value in state.items():
        module, _, entry = name.rpartition(".")
        own = result.state_dict[f"{modules()[module]}.{entry}"]
        assert torch.equal(own.flatten(), value.flatten())


def test_experts_of_another_kernel_size_are_refused() -> None:
    state = published()
    state["blocks.5.0.conv_dw.weight"] = torch.rand(8, 672 * 9)
    result = convert(state, partial(build_with_stem, Config.fromfile(CONFIG)))
    assert "(8, 6048)" in result.refused["blocks.5.0.conv_dw.weight"]
