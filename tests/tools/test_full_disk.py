"""What the commands leave when a file cannot be written to its end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rednet.cli.command import run
from rednet.errors import UserError
from rednet.models import RedNet
from tools import test
from tools.model_converters import convert_checkpoint, export_onnx, switch_to_deploy

TINY = dict(depth=26, stem_channels=32, base_channels=16)
CONFIG = f"custom_imports = dict(imports=['rednet'])\nmodel = dict(type='RedNet', **{TINY!r})\n"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _fail)


def _fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.save({"state_dict": RedNet(**TINY).state_dict()}, tmp_path / "trained.pth")
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path


def _is_told_and_earlier_files_stay(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = capsys.readouterr().err.strip()
    assert f"error: {folder / name} cannot be written: No space left on device" in error
    assert len(error.splitlines()) == 1
    assert (folder / name).read_text() == "earlier"
    assert not list(folder.glob(".*.rednet-part"))


@pytest.mark.usefixtures("full_disk")
def test_a_converted_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "out.pth").write_text("earlier")
    assert run(convert_checkpoint.main, [str(trained / "trained.pth"), str(trained / "out.pth")])
    _is_told_and_earlier_files_stay(trained, "out.pth", capsys)


@pytest.mark.usefixtures("full_disk")
def test_a_fused_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "fused.pth").write_text("earlier")
    arguments = [trained / "config.py", trained / "trained.pth", trained / "fused"]
    assert run(switch_to_deploy.main, [*map(str, arguments), "--shape", "32", "32"])
    _is_told_and_earlier_files_stay(trained, "fused.pth", capsys)
    assert not (trained / "fused.py").exists()


def test_an_exported_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.model_converters.export_onnx.export_onnx", _fail)
        (trained / "out.onnx").write_text("earlier")
        arguments = ["config.py", "trained.pth", "--out", "out.onnx"]
        paths = [each if each[0] == "-" else str(trained / each) for each in arguments]
        assert run(export_onnx.main, [*paths, "--shape", "32"]) == 2
    _is_told_and_earlier_files_stay(trained, "out.onnx", capsys)


@pytest.mark.usefixtures("full_disk")
def test_predictions(tmp_path: Path) -> None:
    (tmp_path / "out.pkl").write_text("earlier")
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        test._dump(None, str(tmp_path / "out.pkl")).compute_metrics([1])
    assert (tmp_path / "out.pkl").read_text() == "earlier"
