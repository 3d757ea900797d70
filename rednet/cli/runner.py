"""Building mmengine's Runner from the arguments of a command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from rednet.checkpoint.reading import require_weights_only
from rednet.cli.config import check_numbers, import_rednet
from rednet.cli.config_keys import LOADERS
from rednet.cli.model import require_model
from rednet.cli.nms_keys import check_nms_keys
from rednet.cli.paths import check_output
from rednet.cli.preflight import check_scope
from rednet.cli.unread_keys import check_unread_keys
from rednet.engine import BareWeightsHook, WholeCheckpointHook
from rednet.errors import UserError


def set_up_run(config: Config, arguments: argparse.Namespace) -> None:
    """Applies the arguments of :func:`add_runner_arguments` to a config."""
    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    require_weights_only()
    require_model(config)
    check_scope(config.get("default_scope"))
    check_numbers(config)
    check_unread_keys(config, config.get("default_scope"))
    check_nms_keys(config, config.get("default_scope"))
    config.launcher = arguments.launcher
    if arguments.work_dir == "":
        raise UserError("--work-dir must name a folder, got ''")
    if arguments.work_dir is not None:
        config.work_dir = arguments.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(arguments.config).stem)
    check_output(config.work_dir, "the work directory (--work-dir)", folder=True)
    import_rednet(config)
    for loader in filter(None, map(config.get, LOADERS)):
        _set_loader_defaults(loader, config.get("default_scope"), arguments)


def _set_loader_defaults(loader: Any, scope: str | None, arguments: argparse.Namespace) -> None:
    """Sets the defaults of mmpretrain's and mmdet's own tools that this machine can use."""
    if scope == "mmpretrain":
        loader.setdefault("collate_fn", dict(type="default_collate"))
    workers = loader.get("num_workers", 0) > 0
    loader.setdefault("persistent_workers", workers)
    loader.setdefault("pin_memory", torch.cuda.is_available())
    loader.persistent_workers &= workers and not arguments.no_persistent_workers
    loader.pin_memory &= not arguments.no_pin_memory


def build_runner(config: Config, notes: Sequence[str], *, partial: bool) -> Runner:
    """Builds the runner and logs the notes, so that they are in the log file too.

    Args:
        config: The config.
        notes: What the user should know.
        partial: Whether a checkpoint may fit the model in part. (Other runners than mmengine's
            ``Runner`` may split the model among processes and are not checked.)
    """
    if "runner_type" in config:
        runner = RUNNERS.build(config)
    else:
        runner = Runner.from_cfg(config)
        runner.register_hook(BareWeightsHook())
        runner.register_hook(WholeCheckpointHook(partial))
    for note in notes:
        runner.logger.warning(note)
    return runner
