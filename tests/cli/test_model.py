from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from rednet.cli.model import build_model, load_weights
from rednet.errors import MissingDependencyError, UserError


def test_the_model_is_built() -> None:
    config = Config(
        dict(model=dict(type="ConvAWS2d", in_channels=2, out_channels=4, kernel_size=3))
    )
    assert build_model(config).weight.shape == (4, 2, 3, 3)


def test_a_library_that_is_not_installed_is_named() -> None:
    config = Config(dict(default_scope="mmnothing", model=dict(type="Unknown")))
    with pytest.raises(MissingDependencyError, match="mmnothing, which is not installed"):
        build_model(config)


def test_weights_that_fit_are_loaded(tmp_path: Path) -> None:
    given, model = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(dict(state_dict=given.state_dict(), meta=dict(epoch=3)), tmp_path / "a.pth")
    assert load_weights(model, str(tmp_path / "a.pth"))["meta"] == dict(epoch=3)
    assert torch.equal(model.weight, given.weight)


@pytest.mark.parametrize("other", [nn.Linear(2, 4), nn.Linear(2, 3, bias=False), nn.Flatten()])
def test_weights_that_do_not_fit_are_refused(other: nn.Module, tmp_path: Path) -> None:
    torch.save(dict(state_dict=other.state_dict()), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth does not fit the config"):
        load_weights(nn.Linear(2, 3), str(tmp_path / "a.pth"))
