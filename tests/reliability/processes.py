"""Compares several processes with one on the joined batch, and kills one of them.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/processes.py

Batch norms, whose statistics are those of a process, are group norms here, and numbers have 64
bits.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rednet.checkpoint.reading import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16
CONFIG = f"""
_base_ = ["{ROOT}/configs/demo/rednet26_digits.py"]
custom_imports = dict(imports=["rednet", "double"])
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=4)))
train_pipeline = [dict(type="Resize", scale=32), dict(type="PackInputs")]
train_dataloader = dict(batch_size={BATCH}, dataset=dict(indices=48, pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(max_epochs=3)
custom_hooks = []
"""
DOUBLE = "import torch\ntorch.set_default_dtype(torch.float64)\n"


def start(folder: Path, processes: int, work_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Starts a training; its output goes to files beside the work directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = f"{folder}:{ROOT}"
    environment = {**os.environ, "PYTHON": sys.executable, "PORT": str(port), "PYTHONPATH": paths}
    arguments = ["--work-dir", str(work_dir), "--no-validate", *options]
    command = [sys.executable, str(ROOT / "tools/train.py"), str(folder / "config.py")]
    if processes > 1:
        script = str(ROOT / "tools/dist_train.sh")
        command = [script, str(folder / "config.py"), str(processes)]
    with open(f"{work_dir}.out", "w") as out, open(f"{work_dir}.err", "w") as err:
        return subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=out, stderr=err, text=True
        )


def weights(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """The weights after a training of so many processes."""
    work_dir = folder / f"of_{processes}"
    size = f"train_dataloader.batch_size={BATCH // processes}"
    if start(folder, processes, work_dir, "--cfg-options", size).wait():
        raise SystemExit(Path(f"{work_dir}.err").read_text())
    return read_state_dict(work_dir / "epoch_3.pth")


def children(number: int) -> list[int]:
    """The processes that a process has started."""
    text = Path(f"/proc/{number}/task/{number}/children").read_text()
    return [int(each) for each in text.split()]


def kill_one(folder: Path, processes: int, trial: int) -> tuple[float, int, list[str]]:
    """Kills a process of a training; returns the seconds to its end, exit code and error lines."""
    work_dir = folder / f"killed_{processes}_{trial}"
    running = start(folder, processes, work_dir, "--cfg-options", "train_cfg.max_epochs=10000")
    while "Saving checkpoint at 2 epochs" not in Path(f"{work_dir}.out").read_text():
        if running.poll() is not None:
            raise SystemExit(Path(f"{work_dir}.err").read_text())
        time.sleep(0.1)
    time.sleep(random.random())
    ranks = [each for each in children(running.pid) if "train.py" in _command(each)]
    begun = time.monotonic()
    os.kill(random.choice(ranks), signal.SIGKILL)
    code = running.wait(timeout=120)
    lines = Path(f"{work_dir}.err").read_text().splitlines()
    left = [each for each in ranks if Path(f"/proc/{each}").exists()]
    told = [line for line in lines if line.startswith("error: ") or "Traceback" in line]
    return time.monotonic() - begun, code, told + [f"{each} still runs" for each in left]


def _command(number: int) -> str:
    return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def compare(folder: Path) -> None:
    """Prints how far several processes are from one."""
    alone = weights(folder, 1)
    for processes in (2, 4):
        together = weights(folder, processes)
        largest = max((alone[name] - each).abs().max().item() for name, each in together.items())
        print(f"{processes} processes: largest difference of a weight {largest:.1e}", flush=True)


def kill(folder: Path) -> None:
    """Prints how trainings end of which a process is killed."""
    for processes, trials in ((2, 6), (4, 4)):
        for trial in range(trials):
            seconds, code, told = kill_one(folder, processes, trial)
            print(
                f"{processes} processes, one killed: {seconds:.1f} s, exit code {code}, {told}",
                flush=True,
            )


def main() -> None:
    """Does both."""
    random.seed(0)
    folder = Path(tempfile.mkdtemp(prefix="rednet-processes-"))
    (folder / "config.py").write_text(CONFIG)
    (folder / "double.py").write_text(DOUBLE)
    compare(folder)
    kill(folder)


if __name__ == "__main__":
    main()
