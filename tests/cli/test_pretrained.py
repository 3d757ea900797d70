"""What is told about the weights that a training starts from."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from rednet.checkpoint.reading import read_state_dict
from rednet.cli.pretrained import load_pretrained
from rednet.engine import BareWeightsHook
from rednet.errors import UserError

LOGGER = logging.getLogger("test_pretrained")


class Backbone(BaseModule):
    def __init__(self, init_cfg: Any) -> None:
        super().__init__(init_cfg)
        self.layer = nn.Linear(2, 3)


class Model(BaseModule):
    def __init__(self, path: Any, **options: Any) -> None:
        super().__init__()
        self.backbone = Backbone(dict(type="Pretrained", checkpoint=str(path), **options))


WEIGHTS = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(3)}


def told(caplog: pytest.LogCaptureFixture, model: Model) -> tuple[str, str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, LOGGER.name):
        load_pretrained(model, LOGGER)
    (record,) = caplog.records
    return record.levelname, record.getMessage()


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whole_weights(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, prefix: str, dtype: torch.dtype
) -> None:
    path = tmp_path / "a.pth"
    torch.save({prefix + name: each.to(dtype) for name, each in WEIGHTS.items()}, path)
    model = Model(path, prefix="backbone." if prefix == "backbone." else None)
    level, line = told(caplog, model)
    assert (level, line) == ("INFO", f"model.backbone.init_cfg: {path}: 2 weights loaded")
    assert model.backbone.layer.weight.dtype == torch.float32
    assert model.backbone.layer.weight.eq(1).all()


def test_a_part(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    other = {"layer.weight": torch.ones(5, 2), "layer.bias": torch.ones(3), "fc": torch.ones(1)}
    torch.save(dict(state_dict=other), path)
    level, line = told(caplog, Model(path))
    assert level == "WARNING"
    assert line.endswith(
        "1 weights loaded, 1 unexpected (fc), "
        "1 of another shape (layer.weight: [5, 2], in the model [3, 2])"
    )


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"other.weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"a\.pth: 0 weights loaded, 2 missing .*; prefix names"):
        load_pretrained(Model(path), LOGGER)
    torch.save({**WEIGHTS, "layer.bias": torch.full((3,), float("inf"))}, path)
    with pytest.raises(UserError, match=r"init_cfg: .*a\.pth cannot be used: 1 of 2 weights hold"):
        load_pretrained(Model(path), LOGGER)


def test_safetensors(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "a.safetensors"
    save_file(WEIGHTS, path)
    assert read_state_dict(path).keys() == WEIGHTS.keys()
    assert told(caplog, Model(path))[1].endswith("2 weights loaded")
    model = Model(path)
    load_checkpoint(model.backbone, str(path), map_location="cpu", strict=True)
    assert torch.equal(model.backbone.layer.weight, WEIGHTS["layer.weight"])
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match=r"a\.safetensors is not a file of safetensors that can"):
        read_state_dict(path)


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="needs safetensors: pip install safetensors"):
        read_state_dict(tmp_path / "a.safetensors")


def test_a_download(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://example.com/a.pth"
    monkeypatch.setattr(CheckpointLoader, "load_checkpoint", lambda *_, **__: dict(WEIGHTS))
    assert told(caplog, Model(address))[1].endswith(f"{address}: 2 weights loaded")

    def without_network(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(CheckpointLoader, "load_checkpoint", without_network)
    with pytest.raises(UserError, match=f"{address} cannot be used: no route"):
        load_pretrained(Model(address), LOGGER)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_weights_reach_the_average(prefix: str) -> None:
    hook, runner = EMAHook(), Runner()
    hook.before_run(runner)  # type: ignore[arg-type]
    checkpoint: dict[str, Any] = {prefix + name: each for name, each in WEIGHTS.items()}
    BareWeightsHook().after_load_checkpoint(runner, checkpoint)  # type: ignore[arg-type]
    hook.after_load_checkpoint(runner, checkpoint)  # type: ignore[arg-type]
    assert hook.ema_model.module.layer.bias.eq(1).all()


class Runner:
    """What the hooks ask of a runner."""

    def __init__(self) -> None:
        self.model = Backbone(None)
        self._resume = False
