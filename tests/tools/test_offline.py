"""Training and evaluating open no network connection."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmpretrain")

from rednet.cli.command import run
from tools import test as evaluate
from tools import train

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/demo/rednet26_digits.py")
SHORT = [
    "train_cfg.max_epochs=1",
    "train_dataloader.dataset.indices=8",
    "train_dataloader.batch_size=8",
    "val_dataloader.dataset.indices=8",
    "test_dataloader.dataset.indices=8",
]


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a network connection was asked for: {args[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    flags = ["--work-dir", str(tmp_path), "--cfg-options", *SHORT]
    assert run(train.main, [CONFIG, *flags]) == 0
    assert run(evaluate.main, [CONFIG, str(tmp_path / "epoch_1.pth"), *flags]) == 0
