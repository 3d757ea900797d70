"""Distributed runs on machines without a GPU."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed


def set_up_cpu_processes(config: Config) -> None:
    """Prepares a distributed run on CPUs, which mmengine's set-up does not support.

    mmengine selects a GPU before anything else. On a machine with an accelerator, and without a
    launcher, this function does nothing.

    Args:
        config: The config. Its model wrapper is configured without devices.
    """
    if config.get("launcher", "none") != "pytorch" or get_device() != "cpu":
        return
    distributed.init_process_group(backend="gloo")
    config.model_wrapper_cfg = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": config.get("find_unused_parameters", False),
        **(config.get("model_wrapper_cfg") or {}),
        "device_ids": None,
    }
