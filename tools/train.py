"""Train a model from a config of mmpretrain's, mmdet's or mmseg's form."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from rednet.cli.arguments import add_runner_arguments, config_parser
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.failures import run_loops, setting_up
from rednet.cli.images import check_images
from rednet.cli.paths import check_checkpoint
from rednet.cli.preflight import check_config
from rednet.cli.pretrained import load_pretrained
from rednet.cli.processes import set_up_cpu_processes
from rednet.cli.resuming import check_strategy, keep_seed, newest_checkpoint
from rednet.cli.runner import build_runner, set_up_run
from rednet.errors import UserError

_CHECKS = ("FrozenWeightsHook", "InterruptHook", "NonFiniteLossHook")
_LOOPS = {
    EpochBasedTrainLoop: "ResumableEpochTrainLoop",
    IterBasedTrainLoop: "ResumableIterTrainLoop",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains as the arguments say."""
    args = _parse(arguments)
    with setting_up():
        runner = _set_up(args)
    _, begun = run_loops(runner, runner.train)
    if not begun:
        runner.logger.warning(_nothing_done(runner))


def _set_up(args: argparse.Namespace) -> Runner:
    """Reads and checks the config, and builds the runner."""
    config, notes = read_config(args.config, args.cfg_options)
    set_up_run(config, args)
    _add_checks(config)
    _use_safe_checkpoints(config)
    _use_resumable_loop(config)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        _use_amp(config)
    if args.auto_scale_lr:
        _scale_lr(config)
    if args.resume is not None:
        notes += _resume(config, args.resume)
    notes += check_strategy(config)
    loaders = ["train_dataloader", "val_dataloader"]
    loaders = [name for name in loaders if config.get(name)]
    notes += check_config(config, loaders)
    if args.check_data:
        check_images(config, loaders)
    set_up_cpu_processes(config)
    resumes = bool(config.get("resume"))
    runner = build_runner(config, notes, partial=not resumes)
    if not resumes and isinstance(runner, Runner):
        load_pretrained(runner.model, runner.logger)
    _compare_batch_size(runner)
    return runner


def _nothing_done(runner: Runner) -> str:
    """The line for a resumed run that had been trained to its end, or further."""
    return (
        f"no iteration was run: {runner.epoch} epochs and {runner.iter} iterations are done, and "
        f"train_cfg is {dict(runner.cfg.train_cfg)}"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint, by default the newest complete one of the work directory",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by batch size / auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--no-validate", action="store_true", help="train without validation")
    parser.add_argument("--check-data", action="store_true", help="open every image first")
    add_runner_arguments(parser)
    return parser.parse_args(arguments)


def _add_checks(config: Config) -> None:
    """Adds the hooks that check a training to every config, a library's own too."""
    hooks = config.get("custom_hooks") or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(each, Mapping) for each in hooks):
        raise UserError(
            f"custom_hooks must be a list of dicts such as dict(type=...), got {hooks!r}"
        )
    present = {hook.get("type") for hook in hooks}
    config.custom_hooks = [*hooks, *(dict(type=name) for name in _CHECKS if name not in present)]


def _use_safe_checkpoints(config: Config) -> None:
    """Puts SafeCheckpointHook in place of mmengine's hook, with the arguments of the config."""
    hooks = dict(config.get("default_hooks") or {})
    checkpoint = hooks.get("checkpoint", dict(type="CheckpointHook", interval=1))
    if isinstance(checkpoint, Mapping) and checkpoint.get("type") in _names(CheckpointHook):
        config.default_hooks = {**hooks, "checkpoint": {**checkpoint, "type": "SafeCheckpointHook"}}


def _use_resumable_loop(config: Config) -> None:
    """Puts the loops that resume bit for bit in place of mmengine's."""
    loop = config.get("train_cfg")
    if not isinstance(loop, Mapping):
        return
    kind = loop.get("type")
    for original, ours in _LOOPS.items():
        by_epoch = original is EpochBasedTrainLoop
        asked = loop.get("by_epoch") == by_epoch if kind is None else kind in _names(original)
        if asked:
            rest = {key: value for key, value in loop.items() if key not in ("type", "by_epoch")}
            config.train_cfg = dict(rest, type=ours)


def _names(kind: type) -> tuple[str, str, type]:
    """How a config may name a class of mmengine."""
    return kind.__name__, f"mmengine.{kind.__name__}", kind


def _use_amp(config: Config) -> None:
    if get_device() == "cpu":
        _use_cpu_amp(config.optim_wrapper)
        return
    config.optim_wrapper.type = "AmpOptimWrapper"
    config.optim_wrapper.setdefault("loss_scale", "dynamic")


def _use_cpu_amp(wrapper: ConfigDict) -> None:
    dtype = wrapper.pop("dtype", "bfloat16")
    if dtype != "bfloat16":
        raise UserError(
            f"optim_wrapper.dtype must be bfloat16 on a CPU, got {dtype}, which needs a GPU"
        )
    wrapper.pop("loss_scale", None)
    wrapper.type = "CpuAmpOptimWrapper"


def _scale_lr(config: Config) -> None:
    if "base_batch_size" not in config.get("auto_scale_lr", {}):
        raise UserError(
            "--auto-scale-lr needs the batch size that the learning rate is meant for: "
            "--cfg-options auto_scale_lr.base_batch_size=SIZE"
        )
    config.auto_scale_lr.enable = True


def _compare_batch_size(runner: Runner) -> None:
    config = runner.cfg
    scaling = config.get("auto_scale_lr", {})
    batch = config.train_dataloader.get("batch_size", 1) * runner.world_size
    meant = scaling.get("base_batch_size", batch)
    if batch != meant and not scaling.get("enable"):
        runner.logger.warning(
            f"the learning rate is meant for batches of {meant}, these are of {batch}: "
            "--auto-scale-lr scales it"
        )


def _resume(config: Config, checkpoint: str) -> list[str]:
    config.resume = True
    if checkpoint != "auto":
        check_checkpoint(checkpoint, "the checkpoint of --resume")
        config.load_from = checkpoint
        keep_seed(config, checkpoint)
        return []
    latest, notes = newest_checkpoint(config.work_dir)
    config.load_from = None if latest is None else str(latest)
    if latest is None:
        notes = [f"--resume: no checkpoint in {config.work_dir}, training starts from scratch"]
    else:
        keep_seed(config, latest)
    return notes


if __name__ == "__main__":
    sys.exit(run(main))
