from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from rednet.engine import TemperatureAnnealHook
from rednet.layers import DynamicConv2d, ODConv2d

ITERATIONS_AN_EPOCH = 4


class Model(BaseModel):
    """Notes its layers' temperatures in every training step."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.seen: list[list[float]] = []

    def forward(self, image: Tensor, mode: str = "tensor") -> dict[str, Tensor]:
        self.seen.append([each.temperature.item() for each in self.layers if _is_tempered(each)])
        return dict(loss=self.layers(image).square().mean())


def _is_tempered(layer: nn.Module) -> bool:
    return hasattr(layer, "temperature")


def dynamic_model() -> Model:
    return Model(DynamicConv2d(2, 3, 1), nn.ReLU(), ODConv2d(3, 2, 1))


class Wrapped(nn.Module):
    """As DistributedDataParallel holds its model."""

    def __init__(self, module: Model) -> None:
        super().__init__()
        self.module = module
        self.train_step = module.train_step


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """Builds a runner for a few iterations on the CPU."""

    def build(model: nn.Module, loop: dict, *, resume: bool = False, **hook: Any) -> Runner:
        data = [dict(image=torch.ones(2, 4, 4))] * (2 * ITERATIONS_AN_EPOCH)
        return Runner(
            model=model,
            work_dir=str(tmp_path),
            train_dataloader=dict(
                dataset=data,
                sampler=dict(type="DefaultSampler", shuffle=False),
                batch_size=2,
                collate_fn=dict(type="default_collate"),
            ),
            train_cfg=loop,
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
            custom_hooks=[dict(type="TemperatureAnnealHook", **hook)],
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(
                    type="CheckpointHook",
                    by_epoch=loop["by_epoch"],
                    interval=1 if loop["by_epoch"] else ITERATIONS_AN_EPOCH,
                ),
            ),
            log_processor=dict(by_epoch=loop["by_epoch"]),
            experiment_name=f"{tmp_path.name}-{len(list(tmp_path.iterdir()))}",
            resume=resume,
        )

    return build


def test_it_is_registered() -> None:
    hook = HOOKS.build(dict(type="TemperatureAnnealHook"))
    assert isinstance(hook, TemperatureAnnealHook)
    assert (hook.start, hook.end, hook.epochs) == (30, 1, 10)


def test_every_iteration_of_the_epochs_lowers_it_by_the_same_step(runner: Any) -> None:
    model = dynamic_model()
    runner(model, dict(by_epoch=True, max_epochs=3), start=9.0, epochs=2).train()
    expected = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert model.seen == [[value, value] for value in expected]
    assert model.layers[0].temperature == 1


@pytest.mark.parametrize("length", [dict(iterations=2), dict(iterations=2, epochs=5)])
def test_a_length_in_iterations(runner: Any, length: dict) -> None:
    model = dynamic_model()
    runner(model, dict(by_epoch=False, max_iters=4), start=4.0, end=2.0, **length).train()
    assert [each[0] for each in model.seen] == [3, 2, 2, 2]


def test_the_temperatures_are_the_published_ones() -> None:
    """Those of ODConv's training script, which counts the iteration before it sets one."""
    hook = TemperatureAnnealHook(start=30.0, end=1.0, iterations=50)
    hook._length = 50
    for iteration in range(60):
        published = 1.0 + max(0.0, 29.0 * (50 - (iteration + 1)) / 50)
        assert hook.temperature(iteration) == pytest.approx(published)
    assert hook.temperature(0) == pytest.approx(29.42)


def test_a_length_in_epochs_holds_in_a_loop_that_counts_iterations(runner: Any) -> None:
    model = dynamic_model()
    runner(model, dict(by_epoch=False, max_iters=5), start=5.0, epochs=1).train()
    assert [each[0] for each in model.seen] == [4, 3, 2, 1, 1]


def test_a_resumed_training_goes_on_where_it_was(runner: Any, tmp_path: Path) -> None:
    runner(dynamic_model(), dict(by_epoch=True, max_epochs=1), start=9.0, epochs=2).train()
    model = dynamic_model()
    runner(model, dict(by_epoch=True, max_epochs=2), resume=True, start=9.0, epochs=2).train()
    assert [each[0] for each in model.seen] == [4, 3, 2, 1]


def test_the_checkpoint_holds_the_temperature(runner: Any, tmp_path: Path) -> None:
    runner(dynamic_model(), dict(by_epoch=True, max_epochs=1), start=9.0, epochs=2).train()
    weights_only = hasattr(torch.serialization, "add_safe_globals")  # rednet.engine names the types
    state = torch.load(tmp_path / "epoch_1.pth", weights_only=weights_only)["state_dict"]
    assert state["layers.0.temperature"] == 5
    fresh = dynamic_model()
    fresh.load_state_dict(state)
    assert fresh.layers[2].temperature == 5


def test_the_log_shows_it(runner: Any, tmp_path: Path) -> None:
    built = runner(dynamic_model(), dict(by_epoch=True, max_epochs=1), start=9.0, epochs=2)
    built.train()
    assert built.message_hub.get_scalar("train/temperature").current() == 5
    (log,) = tmp_path.rglob("*.log")
    assert "temperature: 8.0000" in log.read_text()


@pytest.mark.parametrize("by_epoch", [True, False])
def test_an_averaged_model_has_the_temperature_of_the_training(
    runner: Any, tmp_path: Path, by_epoch: bool
) -> None:
    model = dynamic_model()
    loop = dict(by_epoch=True, max_epochs=1) if by_epoch else dict(by_epoch=False, max_iters=4)
    built = runner(model, loop, start=9.0, epochs=2)
    built.register_hook(dict(type="EMAHook", update_buffers=True))
    built.train()
    assert model.seen[-1] == [5, 5]
    weights_only = hasattr(torch.serialization, "add_safe_globals")  # rednet.engine names the types
    path = tmp_path / ("epoch_1.pth" if by_epoch else "iter_4.pth")
    checkpoint = torch.load(path, weights_only=weights_only)
    assert checkpoint["state_dict"]["layers.0.temperature"] == 5  # the average
    assert checkpoint["ema_state_dict"]["module.layers.0.temperature"] == 5  # the training's


def test_a_wrapped_model_takes_part(runner: Any) -> None:
    model = dynamic_model()
    built = runner(model, dict(by_epoch=True, max_epochs=1), start=9.0, epochs=2)
    built.model = Wrapped(model)
    hook = TemperatureAnnealHook(start=9.0, iterations=8)
    hook.before_train(built)
    hook.before_train_iter(built, 0)
    assert model.layers[0].temperature == 8


def test_a_model_without_temperature_gets_a_warning(
    runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    built = runner(Model(nn.Conv2d(2, 2, 1)), dict(by_epoch=True, max_epochs=1))
    built.logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        built.train()
    assert "TemperatureAnnealHook has no effect: no module of Model has" in caplog.text
    assert "train/temperature" not in built.message_hub.log_scalars


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(start=0), ValueError, "start must be finite and above 0, got 0"),
        (dict(end=float("inf")), ValueError, "end must be finite and above 0, got inf"),
        (dict(start="30"), TypeError, "start must be a number, got '30'"),
        (dict(epochs=0), ValueError, "epochs must be at least 1, got 0"),
        (dict(epochs=1.5), TypeError, "epochs must be an int, got 1.5"),
        (dict(iterations=0), ValueError, "iterations must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TemperatureAnnealHook(**arguments)
