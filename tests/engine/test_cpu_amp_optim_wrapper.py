"""Mixed precision on a CPU is bfloat16 with float32 weights."""

from __future__ import annotations

import torch
from torch import nn

from rednet.engine import CpuAmpOptimWrapper


def test_the_forward_pass_is_bfloat16_and_the_weights_are_float32() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 2))
    wrapper.update_params(output.sum())
    assert output.dtype == torch.bfloat16 and model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.detach(), before - 0.1)
    assert model(torch.ones(1, 2)).dtype == torch.float32
