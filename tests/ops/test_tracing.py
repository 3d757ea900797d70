"""What is asked of private parts of PyTorch, and what happens when PyTorch renames them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rednet.ops import tracing
from tests.forked_programs import run_forked

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = re.compile(r"\btorch\._[a-zA-Z]|\b(_functorch|_dynamo|_current_level|_dispatch_keys)\b")

WITHOUT_PRIVATE_NAMES = """
import mmcv.cnn
import torch
import torch._dynamo  # PyTorch's own parts find the names
from torch.autograd import forward_ad

class Without:
    def __init__(self, module, names):
        self.module, self.names = module, names
    def __getattr__(self, name):
        if name in self.names:
            raise AttributeError(name)
        return getattr(self.module, name)

names = {names}
private = torch._C
torch._C = Without(private, names)
del forward_ad._current_level
import rednet
from rednet.ops import tracing
torch._C = private
forward_ad._current_level = -1  # PyTorch itself needs it

torch.manual_seed(0)
input = torch.randn(2, 32, 9, 9, requires_grad=True)
weight = torch.randn(2, 2, 3, 3, 9, 9, requires_grad=True)
output = rednet.ops.involution2d(input, weight, padding=1)
output.sum().backward()
with rednet.ops.backend("reference"):
    expected = rednet.ops.involution2d(input.detach(), weight.detach(), padding=1)
assert torch.allclose(output, expected, atol=1e-5)
assert input.grad.any() and weight.grad.any()
layer = rednet.layers.ODConv2d(32, 32, 3, padding=1)
layer(input.detach()).sum().backward()
assert layer.weight.grad.any()
print(tracing.is_dispatched(), tracing.is_transformed(), tracing.is_batched(input))
"""
NAMES = [
    "_functorch",
    "_are_functorch_transforms_active",
    "_len_torch_dispatch_stack",
    "_dispatch_keys",
    "_dynamo",
]


def test_without_the_private_names_only_features_are_lost() -> None:
    code = WITHOUT_PRIVATE_NAMES.replace("{names}", repr(set(NAMES)))
    done = run_forked(code)
    assert done.returncode == 0, done.stderr
    # Where it cannot be told, the answer is the one that keeps results right.
    assert done.stdout.split() == ["True", "True", "True"]


@pytest.mark.parametrize("folder", ["rednet", "tools"])
def test_no_other_file_names_private_parts_of_pytorch(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*.py") if path.name != "tracing.py"]
    assert files
    found = [str(path) for path in files if PRIVATE.search(path.read_text())]
    assert found == []


def test_gradients_by_the_batch_are_seen() -> None:
    seen = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor) -> Tensor:
            return input.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(tracing.is_batched(grad))
            return grad

    input = torch.zeros(3, requires_grad=True)
    output = Probe.apply(input)
    torch.autograd.grad(output, input, torch.ones(3), retain_graph=True)
    torch.autograd.grad(output, input, torch.eye(3), is_grads_batched=True)
    assert seen == [False, True]


def test_an_unknown_batch_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_dispatch_keys", lambda tensor: "keys of another form")
    tracing._shows_batches.cache_clear()
    assert tracing.is_batched(torch.zeros(1))
    tracing._shows_batches.cache_clear()
