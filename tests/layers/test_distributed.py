"""Training in two processes: every layer, without ``find_unused_parameters``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rednet.layers.base import registered_layers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import gc
import sys
import warnings
import torch
import torch.distributed as dist
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import rednet


def check_gradients(rank, names, memory_format):
    norm = dict(type="BN")
    model = nn.Sequential(
        *(ConvModule(16, 16, 3, padding=1, conv_cfg=dict(type=n), norm_cfg=norm) for n in names)
    )
    model.to(memory_format=memory_format)
    parallel = DistributedDataParallel(model)
    torch.manual_seed(rank)
    for _ in range(2):  # the second pass fails where the first left a gradient out
        model.zero_grad()
        images = torch.randn(2, 16, 5, 6).to(memory_format=memory_format)
        parallel(images).square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    everywhere = [torch.empty_like(gradients) for _ in range(2)]
    dist.all_gather(everywhere, gradients)
    assert gradients.any() and torch.equal(*everywhere)


rank, meeting, *names = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
# DistributedDataParallel warns of gradients that it has to copy into its buckets.
warnings.filterwarnings("error", message=".*strides do not match.*")
for memory_format in (torch.contiguous_format, torch.channels_last):
    check_gradients(int(rank), names, memory_format)
# the group's threads have to end before the interpreter does, and they do once nothing refers to it
gc.collect()
dist.destroy_process_group()
"""


def test_all_layers_train_in_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, rank, tmp_path / "meeting", *registered_layers()],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
