"""Run all benchmarks of docs/results/, each in a process of its own, and keep their results.

    python tools/benchmarks/run_all.py results/today
    python tools/benchmarks/compare_results.py results/before results/today

One .json file a table, with the machine and the versions. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.errors import UserError

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NETWORKS = ("configs/rednet50_imagenet.py", "--peer", "torchvision.models:resnet50")
LAYERS = ("--shapes", "64,64,56,3,1", "256,256,14,3,1", "512,512,7,3,1")
# Both networks in the layout that is the faster one for ResNet-50.
NETWORK = ("benchmark_model.py", *NETWORKS, "--plain", "--channels-last")
# What a table's name is, and the command that makes it.
TABLES = {
    "involution": ("benchmark_involution.py", "--backends", "cpu", "shifted"),
    "involution-channels-last": (
        *("benchmark_involution.py", "--backends", "cpu", "shifted", "--channels-last"),
        *("--passes", "forward", "train"),
    ),
    "growth": ("benchmark_growth.py",),
    "layers": ("benchmark_layers.py", *LAYERS),
    "layers-channels-last": ("benchmark_layers.py", *LAYERS, "--channels-last"),
    "network-1": NETWORK,
    "network-8": (*NETWORK, "--batch-size", "8"),
    "network-800x1333": (*NETWORK, "--shape", "800", "1333"),
    "network-1-deployed": (*NETWORK, "--deploy"),
    "network-8-deployed": (*NETWORK, "--deploy", "--batch-size", "8"),
    "network-800x1333-deployed": (*NETWORK, "--deploy", "--shape", "800", "1333"),
    "onnx-1": ("benchmark_model.py", *NETWORKS, "--onnx"),
    "onnx-8": ("benchmark_model.py", *NETWORKS, "--onnx", "--batch-size", "8"),
    "onnx-800x1333": ("benchmark_model.py", *NETWORKS, "--onnx", "--shape", "800", "1333"),
    "network-8-training": (*NETWORK, "--batch-size", "8", "--train"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen tables one after the other."""
    args = _parse(arguments)
    check_output(args.folder, "the folder", folder=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.tables:
        script, *options = TABLES[name]
        out = (args.folder / f"{name}.json").resolve()
        command = [sys.executable, str(FOLDER / script), *options]
        command += ["--turns", str(args.turns), "--out", str(out)]
        if args.threads:
            command += ["--threads", str(args.threads)]
        if args.custom_operator and "--onnx" in options:
            command += ["--custom-operator", str(args.custom_operator.resolve())]
        print(f"== {name}", flush=True)
        done = subprocess.run(command, cwd=ROOT)
        if done.returncode:
            raise UserError(f"{name}: {script} ended with exit code {done.returncode}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the results")
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=TABLES,
        default=list(TABLES),
        metavar="TABLE",
        help=f"of {', '.join(TABLES)}; default: all",
    )
    parser.add_argument(
        "--turns", type=positive, default=7, help="timed turns of each contender (%(default)s)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads; default: PyTorch's choice")
    parser.add_argument(
        "--custom-operator",
        type=Path,
        metavar="LIBRARY",
        help="the library of build_onnx_operator.py for the tables of ONNX Runtime",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
