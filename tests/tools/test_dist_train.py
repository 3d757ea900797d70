from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rednet.cli import launch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/demo/rednet26_digits.py")
SHORT = [
    "--cfg-options",
    "train_cfg.max_epochs=1",
    "train_dataloader.dataset.indices=32",
    "train_dataloader.batch_size=8",
    "val_dataloader.dataset.indices=15",
    "custom_hooks.0.interval=1",
]


def call(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script to its end."""
    with start(folder, script, *arguments) as process:
        output, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


def start(
    folder: Path, script: str, *arguments: str, stderr: int = subprocess.PIPE
) -> subprocess.Popen:
    """Starts a script in a folder, where mmengine leaves one of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # mmpretrain imports mmdet where it finds it, two seconds in each process that need none of it.
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "mmdet.py").write_text("raise ImportError('hidden')")
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(hidden),
    }
    command = [str(ROOT / "tools" / script), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the GPUs there are")
def test_two_processes_train_and_evaluate_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    work_dir = ["--work-dir", str(tmp_path)]
    done = call(tmp_path, "dist_train.sh", CONFIG, "2", *work_dir, *SHORT)
    assert done.returncode == 0, done.stderr
    # 32 images in batches of 8 on 2 processes
    assert "Epoch(train) [1][2/2]" in done.stdout
    assert done.stdout.count("Epoch(val) [1][1/1]") == 1
    assert (tmp_path / "confusion_matrix.png").is_file()

    checkpoint, metrics = str(tmp_path / "epoch_1.pth"), str(tmp_path / "metrics.json")
    done = call(
        tmp_path, "dist_test.sh", CONFIG, checkpoint, "2", *work_dir, "--out", metrics, *SHORT
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy/top1" in Path(metrics).read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the GPUs there are")
def test_two_processes_stop_together_when_they_are_told_to(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    arguments = [CONFIG, "2", "--work-dir", str(tmp_path), *SHORT, "train_cfg.max_epochs=1000"]
    both = subprocess.STDOUT  # a pipe that nobody reads would fill up
    with start(tmp_path, "dist_train.sh", *arguments, stderr=both) as process:
        assert process.stdout is not None
        assert any("Epoch(val) [2]" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        lines = process.stdout.readlines()
    assert process.returncode == 128 + signal.SIGTERM
    assert sum("SIGTERM: stopped after" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    state = torch.load(tmp_path / "interrupted.pth", weights_only=True)
    assert state["meta"]["iter"] > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dist_train.sh", "none.py", "2"], "there is no config file none.py"),
        (["dist_train.sh", CONFIG, "two"], "PROCESSES must be a number of at least 1, got two"),
        (["dist_test.sh", "none.py", "a.pth", "2"], "there is no config file none.py"),
        (["dist_test.sh", CONFIG, "a.pth", "2"], "the checkpoint a.pth is not a file"),
        (["dist_test.sh", CONFIG, CONFIG, "0"], "PROCESSES must be a number of at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = call(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh"])
def test_a_call_without_arguments_says_how_to_call(script: str, tmp_path: Path) -> None:
    done = call(tmp_path, script)
    assert done.returncode != 0
    assert f"usage: tools/{script}" in done.stderr


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh"])
def test_help_is_printed_and_nothing_started(script: str, tmp_path: Path) -> None:
    done = call(tmp_path, script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"tools/{script} " in done.stdout and "PYTHON" in done.stdout
    assert "set -euo" not in done.stdout


def test_what_the_scripts_share_names_them(tmp_path: Path) -> None:
    for arguments in ((), ("--help",)):
        done = call(tmp_path, "distributed.sh", *arguments)
        assert done.returncode == 0 and not done.stderr
        for script in ("dist_train.sh", "dist_test.sh", "slurm_train.sh"):
            assert f"tools/{script} " in done.stdout
        assert "print_help" not in done.stdout


def test_two_processes_that_fail_write_one_line(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    wrong = ["--work-dir", str(tmp_path), "--cfg-options", "model.backbone.type=RedNt"]
    done = call(tmp_path, "dist_train.sh", CONFIG, "2", *wrong)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "model.backbone.type='RedNt' is not a registered model" in done.stderr


POISON = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
@HOOKS.register_module()
class Poison(Hook):
    priority = "VERY_HIGH"
    def before_train_iter(self, runner, batch_idx, data_batch):
        if os.environ["RANK"] == "1":
            data_batch["inputs"] = data_batch["inputs"] * float("nan")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the GPUs there are")
def test_a_loss_that_is_nan_in_one_of_two_processes_of_fsdp(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    (tmp_path / "hidden").mkdir()  # where `start` lets Python look for modules
    (tmp_path / "hidden" / "poison.py").write_text(POISON)
    (tmp_path / "config.py").write_text(
        f"_base_ = [{CONFIG!r}]\n"
        "custom_imports = dict(imports=['rednet', 'poison'])\n"
        "custom_hooks = [dict(type='Poison')]\n"
        "wrapper = dict(type='MMFullyShardedDataParallel', device_id='cpu')\n"
        "strategy = dict(type='FSDPStrategy', model_wrapper=wrapper)\n"
        "runner_type = 'FlexibleRunner'\n"
    )
    done = call(
        tmp_path, "dist_train.sh", "config.py", "2", "--work-dir", str(tmp_path), *SHORT[:-1]
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "iteration 1: the loss is nan in process 1; the first module whose output" in line
    assert "Traceback" not in done.stderr
    unresumable = "this training cannot be resumed: mmengine's FSDPStrategy"
    assert done.stdout.count(unresumable) == 1


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = f"--master_port={taken.getsockname()[1]}"
        one = ["--nnodes=1", "--nproc_per_node=1", "--master_addr=127.0.0.1", port]
        assert launch.main([*one, str(tmp_path / "never_run.py")]) == 2
    assert "is in use: set PORT to a free one" in capsys.readouterr().err
