"""Puts the operators of this package under mmcv's, where mmcv has compiled ones too."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(autouse=True)
def our_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    operators = importlib.import_module("rednet.mmcv_ops.operators").OPERATORS
    extension = importlib.import_module("mmcv._ext")
    for name, function in operators.items():
        monkeypatch.setattr(extension, name, function)
