from __future__ import annotations

from pathlib import Path

import pytest

from rednet.cli.command import run
from tools.analysis_tools import get_flops

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "configs" / "demo" / "rednet26_digits.py")


def test_the_summary_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmpretrain")
    assert run(get_flops.main, [DIGITS, "--shape", "32", "--table", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("rednet26_digits.py, input 1 x 3 x 32 x 32")
    rows = {line[:29].strip(): line[29:].strip() for line in lines if line}
    assert rows["parameters"] == rows["trainable"] == "466,312"
    modules = [line.split()[0] for line in lines[lines.index("") + 1 :] if "%" in line]
    assert modules == ["(model)", "backbone", "head"]


def test_detectors_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """mmdet says 239.32 GFLOPs of this RetinaNet, biases counted."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmcv._ext")
    import mmdet

    config = Path(mmdet.__file__).parent / ".mim/configs/retinanet/retinanet_r50_fpn_1x_coco.py"
    assert run(get_flops.main, [str(config), "--shape", "200", "320"]) == 0
    out = capsys.readouterr().out
    assert "input 1 x 3 x 200 x 320" in out
    (line,) = [line for line in out.splitlines() if "multiply-adds only" in line]
    assert float(line.split()[-1]) == pytest.approx(239.32 / 16, rel=0.03)


def test_a_shape_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(get_flops.main, [DIGITS, "--shape", "1", "2", "3"]) == 2
    assert "--shape expects a height and a width" in capsys.readouterr().err
