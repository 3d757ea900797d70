"""Runs commands on a disk that fills up, frees it and runs them again. Needs the right to mount.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/full_disk.py

Each command writes to a memory disk of a size at which it succeeds, then to smaller ones. A run
holds if it ends with exit code 2 and one line, leaves no part of a file, keeps the earlier file of
that name, and succeeds on a disk that is large enough: a training by resuming, bit for bit.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import trainings
from forked_commands import Child, Main, differing, start

from tools import test, train
from tools.model_converters import convert_checkpoint, export_onnx, switch_to_deploy

KIBI = 1024
LARGE = 400 * KIBI


@contextmanager
def disk(folder: Path, kibibytes: int) -> Iterator[None]:
    """A memory disk in a folder."""
    options = f"size={kibibytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def enlarge(folder: Path) -> None:
    """Gives the disk in a folder more room, as one who has removed other files."""
    subprocess.run(["mount", "-o", f"remount,size={LARGE}k", folder], check=True)


def used(folder: Path) -> int:
    """Kibibytes that are used on the disk in a folder."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize // KIBI


def problems(child: Child, code: int, folder: Path) -> list[str]:
    """What a run on a full disk should not have done."""
    found = [] if code == 2 else [f"exit code {code}"]
    if len(child.errors()) != 1 or "No space left on device" not in child.errors()[0]:
        found.append(f"{len(child.errors())} lines: {child.errors()[:2]}")
    if "Traceback" in child.text():
        found.append("a traceback")
    found += [f"a part of a file: {path}" for path in folder.rglob("*.rednet-part")]
    return found


def trainings_on_small_disks(folder: Path, config: Path, sizes: int) -> list[list[str]]:
    """Trains where a checkpoint, or what follows it, does not fit; then resumes."""
    arguments = [str(config), "--work-dir", str(folder / "disk" / "run"), "--resume"]
    (folder / "disk").mkdir()
    with disk(folder / "disk", LARGE):
        if start(train.main, folder / "disk", arguments).end():
            raise SystemExit((folder / "disk.log").read_text())
        needed = used(folder / "disk")
        whole = folder / "whole.pth"
        whole.write_bytes((folder / f"disk/run/epoch_{trainings.EPOCHS}.pth").read_bytes())
    results = []
    for _ in range(sizes):
        with disk(folder / "disk", random.randrange(needed // 20, needed)):
            child = start(train.main, folder / "disk", arguments)
            found = problems(child, child.end(), folder / "disk")
            enlarge(folder / "disk")
            if start(train.main, folder / "disk", arguments).end():
                found.append("it does not resume")
            last = folder / f"disk/run/epoch_{trainings.EPOCHS}.pth"
            results.append(found + differing(whole, last))
    return results


def outputs_on_small_disks(
    folder: Path, command: Main, arguments: list[str], output: str, sizes: int
) -> list[list[str]]:
    """Runs a command whose output, to replace an earlier one, does not fit; then frees room."""
    place = folder / "disk"
    arguments = [each.replace("DISK", str(place)) for each in arguments]
    with disk(place, LARGE):
        if start(command, place, arguments).end():
            raise SystemExit((folder / "disk.log").read_text())
        needed = used(place)
    results = []
    for _ in range(sizes):
        with disk(place, random.randrange(8, needed)):
            (place / output).write_text("earlier")
            child = start(command, place, arguments)
            found = problems(child, child.end(), place)
            if (place / output).read_text(errors="replace") != "earlier":
                found.append("the earlier file has changed")
            enlarge(place)
            if start(command, place, arguments).end():
                found.append("it fails with enough room")
            results.append(found)
    return results


def main() -> None:
    """Prints a table: command, runs, and how many of them hold."""
    random.seed(0)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="rednet-full-disk-"))
    config = trainings.write(folder)["RedNet-26 with EMA"]
    results = {"train.py": trainings_on_small_disks(folder, config, 8)}
    checkpoint, shape = str(folder / "whole.pth"), ["--shape", "32"]
    both = [str(config), checkpoint]
    scores = ["--work-dir", str(folder / "test"), "--out", "DISK/a.pkl"]
    commands: dict[str, tuple[Main, list[str], str]] = {
        "convert_checkpoint.py": (convert_checkpoint.main, [checkpoint, "DISK/a.pth"], "a.pth"),
        "switch_to_deploy.py": (switch_to_deploy.main, [*both, "DISK/a", *shape], "a.pth"),
        "export_onnx.py": (export_onnx.main, [*both, "--out", "DISK/a.onnx", *shape], "a.onnx"),
        "test.py --out": (test.main, [*both, *scores], "a.pkl"),
    }
    for name, (command, arguments, output) in commands.items():
        results[name] = outputs_on_small_disks(folder, command, arguments, output, 3)
    print("| command | runs | hold |\n|---|---|---|")
    for name, runs in results.items():
        print(f"| `{name}` | {len(runs)} | {sum(not found for found in runs)} |")
    for name, runs in results.items():
        for found in filter(None, runs):
            print(f"{name}: {found}")


if __name__ == "__main__":
    main()
