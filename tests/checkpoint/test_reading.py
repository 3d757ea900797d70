from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from rednet.checkpoint.reading import (
    can_name_types,
    read_meta,
    read_state_dict,
    require_weights_only,
)
from rednet.errors import UserError

pytestmark = pytest.mark.skipif(
    not hasattr(torch.serialization, "add_safe_globals"), reason="torch < 2.4 cannot name types"
)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_the_log_of_a_training_comes_back(tmp_path: Path) -> None:
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    buffer.update(6.0)
    torch.save(dict(loss=buffer, eta=np.float64(0.5), steps=np.int64(3)), tmp_path / "log.pth")
    log = load(tmp_path / "log.pth")
    assert log["loss"].statistics("mean") == 3.0
    assert log["loss"].data[0].tolist() == [1.0, 2.0, 6.0]
    assert (log["eta"], log["steps"]) == (0.5, 3)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_files_of_either_numpy_are_read(tmp_path: Path, module: str) -> None:
    torch.save(dict(loss=HistoryBuffer([1.0], [1]), eta=np.float64(2)), tmp_path / "ours.pth")
    with zipfile.ZipFile(tmp_path / "ours.pth") as ours:
        members = {name: ours.read(name) for name in ours.namelist()}
    with zipfile.ZipFile(tmp_path / "theirs.pth", "w") as theirs:
        for name, content in members.items():
            for ours_module in (b"numpy.core.multiarray\n", b"numpy._core.multiarray\n"):
                content = content.replace(ours_module, f"{module}\n".encode())
            theirs.writestr(name, content)
    log = load(tmp_path / "theirs.pth")
    assert log["loss"].current() == 1.0 and log["eta"] == 2


class _Call:
    """Pickles as the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        _Call(getattr, HistoryBuffer, "__init__"),
        _Call(getattr, np.ndarray, "tofile"),
        _Call(os.getcwd),
        _Call(eval, "1 + 1"),
    ],
    ids=["another attribute", "another class", "a function", "eval"],
)
def test_nothing_else_may_be_called(tmp_path: Path, call: _Call) -> None:
    torch.save(dict(loss=call), tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "bad.pth")


def test_weights_only_is_required_of_every_torch_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    require_weights_only()
    assert os.environ == {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


# ---- files that are given as checkpoints


def saved(content: object, path: Path) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world\n",
        b"<html><head></head></html>",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"version https://git-lfs.github.com/spec/v1\n",
        pickle.dumps(dict(weight=1)),
    ],
    ids=["nothing", "text", "HTML", "JPEG", "a pointer of Git LFS", "another pickle"],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    problem = "is not a checkpoint that weights_only can read, or is damaged"
    assert str(caught.value) == f"{path} {problem}"


@pytest.mark.parametrize("lost", [3, 400])
def test_a_truncated_checkpoint(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(saved(dict(weight=torch.zeros(200)), path)[:-lost])
    with pytest.raises(UserError, match="short.pth is not a checkpoint .* or is damaged$"):
        read_state_dict(path)


def test_a_checkpoint_that_could_run_code_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save(dict(state_dict=dict(weight=torch.zeros(1)), meta=argparse.Namespace()), path)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    problem = "holds argparse.Namespace, which weights_only does not allow: it could run code"
    assert str(caught.value) == f"{path} {problem}"


@pytest.mark.parametrize(
    "content", [dict(state_dict={}), [torch.zeros(1)], dict(epoch=3), {3: torch.zeros(1)}]
)
def test_a_checkpoint_without_weights(tmp_path: Path, content: object) -> None:
    path = tmp_path / "none.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="none.pth holds no state_dict[,:]"):
        read_state_dict(path)


def test_the_state_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    torch.save(dict(meta=dict(epoch=1, iter=8), state_dict={}), path)
    assert read_meta(path) == dict(epoch=1, iter=8)
    for meta in (dict(epoch=1), dict(iter=8, seed=0), None):
        torch.save(dict(meta=meta, state_dict={}), path)
        with pytest.raises(UserError, match="holds weights without the state of a training"):
            read_meta(path)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint .*none.pth"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.skipif(not can_name_types(), reason="this torch allows no types")
def test_a_fork_that_takes_the_types_away_again(tmp_path: Path) -> None:
    log = HistoryBuffer()
    log.update(1.0)
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), message_hub=log), tmp_path / "a.pth")
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        assert read_state_dict(tmp_path / "a.pth")["weight"].tolist() == [1, 1]
    finally:
        torch.serialization.add_safe_globals(allowed)
