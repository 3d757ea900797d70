"""Distributed runs: errors of several processes, and machines without a GPU."""

from __future__ import annotations

import os
from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed

_STORE_TIMEOUT = timedelta(seconds=5)


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


def first_to_fail() -> bool:
    """Whether no other process of this distributed run asked before.

    The processes count in the store by which torchrun connected them. Where it cannot be reached,
    every process is the first.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or address is None or port is None:
        return True
    run = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = distributed.TCPStore(
            address, int(port), is_master=False, timeout=_STORE_TIMEOUT, wait_for_workers=False
        )
        return store.add(f"rednet/failures/{run}", 1) == 1
    except (RuntimeError, ValueError):  # of the store
        return True
