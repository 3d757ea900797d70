"""The page of the model zoo is what its script writes from the metafiles."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs/scripts/write_model_zoo.py")
    assert spec is not None and spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    assert zoo.PAGE.read_text() == zoo.page(), "run python docs/scripts/write_model_zoo.py"
    for name in ("rednet152_imagenet.py", "mobilenet-v2-x0.5_odconv4x", "upernet_rednet50"):
        assert name in zoo.page()
