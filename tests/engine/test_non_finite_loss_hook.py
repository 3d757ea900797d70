"""A training stops at the first loss that is not finite, or skips the update."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from rednet.engine import NonFiniteLossHook
from rednet.errors import ArgumentError, UserError


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Identity()

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return dict(loss=self.second(self.first(inputs)).sum())


def step(hook: NonFiniteLossHook, runner: Any, inputs: Tensor) -> None:
    batch = dict(inputs=inputs)
    hook.before_train_iter(runner, 0, batch)
    runner.model.train_step(batch, runner.optim_wrapper)


def runner_of(hook: NonFiniteLossHook) -> Any:
    model = Model()
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)),
        iter=6,
        message_hub=MessageHub("non_finite"),
        logger=MMLogger.get_instance("non_finite"),
    )
    hook.before_train(runner)
    return runner


BAD = torch.tensor([[float("nan"), 1.0]])


def weights(runner: Any) -> Tensor:
    return runner.model.first.weight.detach().clone()


def test_it_names_the_iteration_and_the_first_module() -> None:
    hook = NonFiniteLossHook()
    runner = runner_of(hook)
    before = weights(runner)
    step(hook, runner, torch.ones(1, 2) / 8)
    after = weights(runner)
    assert not torch.equal(before, after)
    with pytest.raises(UserError, match="iteration 7: the loss is nan; .* data_preprocessor "):
        step(hook, runner, BAD)
    assert torch.equal(weights(runner), after)
    runner.model.first.weight.data.fill_(1e3)
    with pytest.raises(UserError, match=r"iteration 7: the loss is inf; .* first \(Linear\)"):
        step(hook, runner, torch.full((1, 2), 1e38))


def test_it_names_a_parameter() -> None:
    hook = NonFiniteLossHook()
    runner = runner_of(hook)
    runner.model.first.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"the parameter first\.bias is not finite"):
        step(hook, runner, torch.ones(1, 2))


def test_it_skips_and_counts() -> None:
    hook = NonFiniteLossHook(action="skip")
    runner = runner_of(hook)
    before = weights(runner)
    step(hook, runner, BAD)
    step(hook, runner, BAD)
    assert hook.skipped == 2 and torch.equal(weights(runner), before)
    step(hook, runner, torch.ones(1, 2) / 8)
    assert hook.skipped == 2 and not torch.equal(weights(runner), before)
    runner.model.first.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"first\.bias"):
        step(hook, runner, torch.ones(1, 2))


def test_accumulated_gradients_are_dropped() -> None:
    hook = NonFiniteLossHook(action="skip")
    runner = runner_of(hook)
    runner.optim_wrapper._accumulative_counts = 4
    before = weights(runner)
    for inputs in (torch.ones(1, 2), BAD):
        step(hook, runner, inputs)
    assert hook.skipped == 1 and runner.model.first.weight.grad is None
    for inputs in (torch.ones(1, 2), torch.ones(1, 2)):
        step(hook, runner, inputs)
    after = weights(runner)
    assert torch.isfinite(after).all() and not torch.equal(before, after)


def test_an_unknown_action() -> None:
    with pytest.raises(ArgumentError, match=r"action must be one of .*, got 'wait'"):
        NonFiniteLossHook(action="wait")


def test_a_model_that_steps_by_itself() -> None:
    hook = NonFiniteLossHook(action="skip")
    runner = runner_of(hook)
    for inputs in (BAD, torch.ones(1, 2)):
        step(hook, runner, inputs)
        before = weights(runner)
        runner.optim_wrapper.backward(runner.model(torch.ones(1, 2))["loss"])
        runner.optim_wrapper.step()
        assert not torch.equal(weights(runner), before)
