"""A training stops at the first loss that is not finite, or skips the update."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, distributed, nn

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


def runner_of(hook: NonFiniteLossHook, model: nn.Module) -> Any:
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


def weights_of(model: Model) -> Tensor:
    return model.first.weight.detach().clone()


def weights(runner: Any) -> Tensor:
    return weights_of(runner.model)


def test_it_names_the_iteration_and_the_first_module() -> None:
    hook = NonFiniteLossHook()
    runner = runner_of(hook, Model())
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
    runner = runner_of(hook, Model())
    runner.model.first.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"the parameter first\.bias is not finite"):
        step(hook, runner, torch.ones(1, 2))


def test_it_skips_and_counts() -> None:
    hook = NonFiniteLossHook(action="skip")
    runner = runner_of(hook, Model())
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
    runner = runner_of(hook, Model())
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
    runner = runner_of(hook, Model())
    for inputs in (BAD, torch.ones(1, 2)):
        step(hook, runner, inputs)
        before = weights(runner)
        runner.optim_wrapper.backward(runner.model(torch.ones(1, 2))["loss"])
        runner.optim_wrapper.step()
        assert not torch.equal(weights(runner), before)


# ---- two processes, one of which has a loss that is not finite

FILE = Path(__file__).resolve()
STOPPED = "iteration 7: the loss is nan in process 1; the first module whose output is not finite"
# What the hook is to do, what a buffer of process 1 becomes, and how the lines of both begin.
CASES = [
    ("skip", 0.0, ["stepped 0", "same 1", "stepped 1"]),
    ("stop", 0.0, ["stepped 0", STOPPED]),
    ("skip", float("nan"), ["stepped 0", STOPPED]),
]


def in_one_of_two(rank: int, meeting: str) -> None:
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    for case, (action, mean, _) in enumerate(CASES):
        take_three_steps(rank, case, NonFiniteLossHook(action), mean)
    # Its threads end once nothing refers to it, and have to before the interpreter does.
    gc.collect()
    distributed.destroy_process_group()


def take_three_steps(rank: int, case: int, hook: NonFiniteLossHook, mean: float) -> None:
    """The second has a bad image in process 1."""
    model = Model()
    model.register_buffer("mean", torch.zeros(1))
    runner = runner_of(hook, MMDistributedDataParallel(model, broadcast_buffers=False))
    for inputs in (torch.ones(1, 2), BAD if rank else torch.ones(1, 2), torch.ones(1, 2)):
        if inputs is BAD:
            model.mean.fill_(mean)
        before = weights_of(model)
        try:
            step(hook, runner, inputs)
        except UserError as error:
            print(case, error)
            break
        same = torch.equal(before, weights_of(model))
        print(case, "same" if same else "stepped", hook.skipped, before.tolist())


def test_two_processes_do_the_same(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", FILE, rank, tmp_path / "meeting"],
            **dict(cwd=FILE.parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        )
        for rank in "01"
    ]
    told = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        told.append([line for line in output.splitlines() if " - WARNING - " not in line])
    assert told[0] == told[1]
    expected = [f"{case} {line}" for case, (*_, lines) in enumerate(CASES) for line in lines]
    for line, beginning in zip(told[0], expected, strict=True):
        assert line.startswith(beginning)


if __name__ == "__main__":
    in_one_of_two(int(sys.argv[1]), sys.argv[2])
