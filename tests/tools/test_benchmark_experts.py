from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from involution_cases import Shape

from rednet.cli.command import run
from tools.benchmarks import benchmark_experts
from tools.benchmarks.benchmark_experts import PLAIN, forms_of


@pytest.mark.parametrize("shape", [Shape(4, 5, 3, 2), Shape(4, 5, 1, 1)], ids=str)
def test_forms_agree(shape: Shape) -> None:
    input, experts = torch.randn(4, 4, 5, 5), torch.randn(2, 4, 4, *(shape.kernel_size,) * 2)
    routing = torch.randn(4, 2)
    forms = forms_of(shape, batch=4)
    expected = forms["patches"](input, experts, routing)
    for name, form in forms.items():
        if name != PLAIN:
            torch.testing.assert_close(
                form(input, experts, routing), expected, rtol=1e-4, atol=1e-4
            )


def test_forward_and_training_of_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("timing.SHORTEST_TURN", 1e-9)
    out = tmp_path / "experts.json"
    arguments = ["--shapes", "16,5,3,1", "--batch-size", "4", "--turns", "1", "--channels-last"]
    assert run(benchmark_experts.main, [*arguments, "--out", str(out)]) == 0
    forward, train = json.loads(out.read_text())["records"]
    assert set(forward["results"]) == set(train["results"]) == set(forms_of(Shape(16, 5, 3, 1), 4))
    assert "| 16x5 K=3 s=1 train | all experts |" in capsys.readouterr().out
