"""What a model takes of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rednet.checkpoint.matching import check_finite, load_matching_weights
from rednet.errors import UserError


def model(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes))


def test_a_whole_match_loads_every_weight() -> None:
    source, target = model(), model()
    match = load_matching_weights(target, source.state_dict())
    assert match.whole and str(match) == "9 weights loaded"
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_counts_of_batches_are_optional() -> None:
    weights = model().state_dict()
    del weights["1.num_batches_tracked"]
    match = load_matching_weights(model(), weights)
    assert match.whole and match.taken == 8
    # A module without the version that a state_dict of torch's carries lacks them silently.
    assert load_matching_weights(model(), {}).taken == 0


def test_what_does_not_fit_is_named_and_the_rest_loaded() -> None:
    weights = model(classes=5).state_dict()
    weights["extra"] = weights.pop("0.bias")
    target = model()
    head = target[2].weight.clone()
    match = load_matching_weights(target, weights)
    assert not match.whole and match.taken == 6
    assert match.missing == ["0.bias"] and match.unexpected == ["extra"]
    assert match.other_shape == [
        "2.weight: [5, 4], in the model [3, 4]",
        "2.bias: [5], in the model [3]",
    ]
    assert torch.equal(target[0].weight, weights["0.weight"])
    assert torch.equal(target[2].weight, head)


def test_a_shape_that_the_model_itself_adapts_is_a_match() -> None:
    target = model()

    def flatten(state_dict: dict, prefix: str, *_: object) -> None:
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"].flatten(1)

    target[2]._register_load_state_dict_pre_hook(flatten)
    weights = model().state_dict()
    weights["2.weight"] = weights["2.weight"][..., None, None]
    assert load_matching_weights(target, weights).whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    weights = model().half().state_dict()
    check_finite(weights)
    weights["1.running_var"][2] = value
    with pytest.raises(UserError, match=r"1 of 9 weights .*\(1.running_var\)"):
        check_finite(weights)
