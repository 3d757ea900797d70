"""A checkpoint of another model is refused instead of being loaded in part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.logging import MMLogger
from torch import Tensor, nn

from rednet.engine import WholeCheckpointHook
from rednet.errors import UserError


def runner_of(model: nn.Module, resume: bool = False) -> Any:
    logger = MMLogger.get_instance("whole_checkpoint")
    return SimpleNamespace(model=model, logger=logger, _resume=resume)


def load(model: nn.Module, weights: dict[str, Tensor], partial: bool = False) -> None:
    checkpoint = dict(state_dict=weights)
    WholeCheckpointHook(partial).after_load_checkpoint(runner_of(model), checkpoint)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_same_model_is_accepted(prefix: str) -> None:
    weights = {prefix + name: value for name, value in nn.Linear(2, 3).state_dict().items()}
    load(nn.Linear(2, 3), weights)
    WholeCheckpointHook().after_load_checkpoint(runner_of(nn.Linear(2, 3)), weights)


def test_another_head_is_refused_unless_partial() -> None:
    weights = nn.Linear(2, 5).state_dict() | {"gain": nn.Linear(1, 1).weight}
    with pytest.raises(UserError, match=r"weight: \[5, 2\], in the model \[3, 2\].*--partial"):
        load(nn.Linear(2, 3), weights)
    with pytest.raises(UserError, match="nothing of the checkpoint fits"):
        load(nn.Linear(2, 3), weights, partial=True)
    load(nn.Linear(2, 3), nn.Linear(2, 3, bias=False).state_dict(), partial=True)


def test_a_training_that_is_continued_needs_the_same_model() -> None:
    runner, checkpoint = runner_of(nn.Linear(2, 3), resume=True), nn.Linear(2, 5).state_dict()
    with pytest.raises(UserError, match="load_from without --resume uses what fits"):
        WholeCheckpointHook().after_load_checkpoint(runner, checkpoint)


def test_weights_that_are_not_finite_are_refused_even_in_part() -> None:
    weights = nn.Linear(2, 3).state_dict()
    weights["weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match="cannot be used: 1 of 2 weights hold NaN"):
        load(nn.Linear(2, 3), weights, partial=True)
