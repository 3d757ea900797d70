"""Distributed runs: errors of several processes, and machines without a GPU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed

from rednet.engine import InterruptHook

_STORE_TIMEOUT = timedelta(seconds=5)
# Where a launcher names the rank of a process, and the number of processes.
_RANKS = {
    "RANK": "WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
}
# Seconds in which a launcher ends the other processes of one that has failed.
_PATIENCE = timedelta(seconds=10)


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


def report_once(report: Callable[[], None]) -> None:
    """Reports what stopped this process, unless another one of this distributed run does.

    The processes count in the store by which torchrun connected them. Without one, as long as
    Slurm's processes are not connected, rank 0 reports. The others wait until it has: the launcher
    ends all processes when one has failed, and would end that one too early. If they wait in vain,
    they have failed alone, and report too.

    Args:
        report: Writes the report.
    """
    ranks = [name for name in _RANKS if name in os.environ]
    if not ranks or int(os.environ.get(_RANKS[ranks[0]], "1")) < 2:
        report()
        return
    try:
        store = _store()
    except (KeyError, RuntimeError, ValueError):  # there is no address, or no store
        if int(os.environ[ranks[0]]) > 0:
            time.sleep(_PATIENCE.total_seconds())
        report()
        return
    run = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _report_first(store, f"rednet/failures/{run}", report)


def wait_for_launcher() -> None:
    """Waits for the launcher to end this process, as it does when another one has failed.

    The launcher, or that process, reports the cause. Returns if the launcher does nothing.

    Raises:
        SystemExit: If the launcher has told a training to end already.
    """
    hook = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(hook, InterruptHook) and hook.received:
        raise SystemExit(128 + hook.received)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_PATIENCE.total_seconds())


def _store() -> distributed.TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(
        address, port, is_master=False, timeout=_STORE_TIMEOUT, wait_for_workers=False
    )


def _report_first(store: distributed.Store, key: str, report: Callable[[], None]) -> None:
    """Reports if no other process has or does so soon."""
    if store.add(key, 1) > 1:
        try:
            store.wait([f"{key}/told"], _PATIENCE)
        except RuntimeError:  # it was ended before
            report()
        return
    report()
    store.set(f"{key}/told", "")
