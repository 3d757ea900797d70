#!/usr/bin/env python3
"""Set RedNet up in a virtual environment; ``tools/install.py --help`` says how.

Needs the standard library alone and runs on any Python from 3.7, so that it can say what is
missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
SUPPORTED = ("3.10", "3.11", "3.12")
GIB = 2**30

# Free space that an installation from nothing takes, in GiB: the environment itself, what pip
# unpacks on the way, and pip's cache.
NEEDED_GIB = {"environment": 8, "temporary": 4, "cache": 4}

DESCRIPTION = """\
Install RedNet and the stack pinned in requirements.txt, in the order that mmcv needs. What is there
already is left alone: a second run takes seconds, and one after an interruption goes on.

pip's own settings are obeyed (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CACHE_DIR ...). Where pip finds a
binary mmcv, that is taken; else mmcv is built, with its CUDA operators where torch sees a GPU and
nvcc is of torch's CUDA version, without them elsewhere.
"""

# Run by another Python, each prints one JSON object.
PROBE_PYTHON = """
import importlib.util, json, platform, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "virtual": sys.prefix != sys.base_prefix,
    "venv": bool(importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")),
    "headers": sysconfig.get_path("include"),
}))
"""
# mmcv's own rule for CUDA operators is a visible GPU; torch's rule is an nvcc of its CUDA version.
FIND_TORCH = """
import json, re, subprocess, torch
from torch.utils.cpp_extension import CUDA_HOME
release = None
if torch.cuda.is_available() and CUDA_HOME:
    command = [CUDA_HOME + "/bin/nvcc", "--version"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    release = re.search(r"release (\\d+)[.]", said)
found = {
    "torch": torch.__version__,
    "gpu": torch.cuda.is_available(),
    "cuda": bool(release and torch.version.cuda.split(".")[0] == release[1]),
}
"""
PROBE_TORCH = FIND_TORCH + "print(json.dumps(found))"
PROBE_MMCV = (
    FIND_TORCH
    + """
import mmcv
from mmcv.ops import nms
device = "cuda" if found["cuda"] else "cpu"
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6]], device=device)
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1]
if kept.tolist() == [0, 2]:
    print(json.dumps({**found, "mmcv": mmcv.__version__}))
"""
)


class InstallError(Exception):
    """Something that the user has to mend, in one line."""


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"install: {text}", flush=True)


# --- Checks before anything large is done ---------------------------------------------------------


def probe(python: str, code: str) -> dict[str, Any] | None:
    """Run ``code`` in another Python and return the object that it prints, or None if it fails."""
    command = [python, "-I", "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return answer if isinstance(answer, dict) else None


def is_supported(version: str) -> bool:
    """Whether RedNet runs on a Python of this version."""
    return version.rpartition(".")[0] in SUPPORTED


def find_python(asked: str | None) -> str:
    """Return the Python to make an environment with.

    Args:
        asked: what ``--python`` names, if it was given.

    Raises:
        InstallError: none of what was asked for, or is on PATH, runs and has a supported version.
    """
    candidates = [asked] if asked else [sys.executable, "python3.11", "python3.12", "python3.10"]
    seen = []
    for candidate in candidates:
        found = probe(candidate, PROBE_PYTHON)
        if found and is_supported(found["version"]):
            return candidate
        seen.append(f"{candidate} {'is ' + found['version'] if found else 'does not run'}")
    raise InstallError(
        f"Python {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]} is needed, but {', '.join(seen)}; "
        "install one, or name it by --python"
    )


def check_disk(folders: dict[str, Path]) -> None:
    """Check that each disk has room for what will be put on it.

    Args:
        folders: where each entry of ``NEEDED_GIB`` will lie; the folder itself need not exist.
    """
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for what, folder in folders.items():
        while not folder.exists():
            folder = folder.parent
        disk = folder.stat().st_dev
        needed[disk] = needed.get(disk, 0) + NEEDED_GIB[what]
        places.setdefault(disk, folder)
    for disk, gib in needed.items():
        free = shutil.disk_usage(places[disk]).free / GIB
        if free < gib:
            raise InstallError(
                f"the disk of {places[disk]} has {free:.1f} GiB free, and about {gib} are needed; "
                "--venv puts the environment elsewhere, TMPDIR and PIP_CACHE_DIR pip's own files"
            )


def check_compiler(headers: Path) -> None:
    """Check that a C++ extension of Python can be built.

    Args:
        headers: the folder where Python.h should be.
    """
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "check.cpp")
        source.write_text("#include <vector>\nint size() { return std::vector<int>(3).size(); }\n")
        command = [*shlex.split(compiler), "-std=c++17", "-shared", "-fPIC", str(source)]
        try:
            subprocess.run([*command, "-o", f"{folder}/check.so"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise InstallError(
                f"mmcv has to be built, and {compiler!r} is no working C++17 compiler; install one "
                "(Debian, Ubuntu: apt-get install g++) or name it by CXX"
            ) from None
    if not (headers / "Python.h").exists():
        raise InstallError(
            f"mmcv has to be built, and {headers / 'Python.h'} is missing; install Python's "
            "headers (Debian, Ubuntu: apt-get install python3-dev)"
        )


# --- The environment ------------------------------------------------------------------------------


class Environment:
    """A virtual environment and its pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        self.log = folder / "rednet-install.log"
        self.lock: int | None = None

    def prepare(self, asked_python: str | None) -> None:
        """Make the environment if it is missing, and mend what an interruption left in it."""
        if not Path(self.python).exists():
            self._make(find_python(asked_python))
        found = probe(self.python, PROBE_PYTHON)
        if not (found and found["virtual"]):
            raise InstallError(f"{self.folder} is no working virtual environment; remove it")
        if not is_supported(found["version"]):
            raise InstallError(
                f"{self.folder} has Python {found['version']}, and {' or '.join(SUPPORTED)} is "
                "needed; --venv names another environment"
            )
        asked = probe(asked_python, PROBE_PYTHON) if asked_python else found
        if not asked or asked["version"] != found["version"]:
            raise InstallError(
                f"{self.folder} has Python {found['version']}, and --python {asked_python} is "
                f"{asked['version'] if asked else 'missing'}; --venv names another environment"
            )
        self.headers = Path(found["headers"])
        self._take_lock()
        self._sweep()
        if not any(self._installed("pip-*")):
            subprocess.run([self.python, "-I", "-m", "ensurepip"], capture_output=True, check=False)
        if not any(self._installed("pip-*")):
            raise InstallError(f"{self.folder} has no pip and cannot get one; remove it")
        self.log.write_text("")

    def _make(self, python: str) -> None:
        begun = (self.folder / "pyvenv.cfg").exists()
        empty = self.folder.is_dir() and not any(self.folder.iterdir())
        if self.folder.exists() and not (begun or empty):
            raise InstallError(
                f"{self.folder} exists and is no virtual environment; --venv names another place"
            )
        found = probe(python, PROBE_PYTHON)
        if not (found and found["venv"]):
            raise InstallError(
                f"{python} has no venv module (Debian, Ubuntu: apt-get install python3-venv)"
            )
        say(f"making {self.folder} with {python}")
        done = subprocess.run([python, "-m", "venv", str(self.folder)], check=False)
        if done.returncode:
            raise InstallError(f"{python} could not make {self.folder}; see the lines above")

    def _take_lock(self) -> None:
        """Keep two installations out of each other's way; pip inherits the lock."""
        import fcntl  # Not on every system that can say why it is not supported.

        self.lock = os.open(self.folder / "rednet-install.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another installation works on {self.folder}; waiting for it")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def _sweep(self) -> None:
        """Remove what an installation that was cut short has left.

        pip writes INSTALLER and RECORD last, yet takes a package without them for installed; and it
        keeps the files that it replaces under names that start with ``~``.
        """
        for info in self._installed("*"):
            if not ((info / "INSTALLER").exists() and (info / "RECORD").exists()):
                say(f"{info.name} was cut short, so it is installed again")
                shutil.rmtree(info)
        for left in self.folder.glob("lib/python3*/site-packages/~*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _installed(self, name: str) -> Iterator[Path]:
        return self.folder.glob(f"lib/python3*/site-packages/{name}.dist-info")

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a short pip command."""
        command = [self.python, "-I", "-m", "pip", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def has(self, requirements: list[str]) -> bool:
        """Whether pip would install nothing for these requirements and what they need."""
        plan = self.pip("install", "--dry-run", "--no-index", *requirements)
        return plan.returncode == 0 and "Would install" not in plan.stdout

    def install(self, *arguments: str, **variables: str) -> None:
        """Run ``pip install``, which writes to the log, and say every half minute how far it is.

        Args:
            arguments: what follows ``pip install``.
            variables: environment variables to set for it.
        """
        assert self.lock is not None
        command = [self.python, "-I", "-m", "pip", "install", *arguments]
        began = time.monotonic()
        with self.log.open("a") as log:
            # In a session of its own, so that an interruption reaches pip and its compilers once,
            # from here, whoever it was sent to.
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables},
                start_new_session=True,
                pass_fds=[self.lock],
            )
        try:
            while True:
                try:
                    failed = process.wait(timeout=30)
                    break
                except subprocess.TimeoutExpired:
                    minutes, seconds = divmod(int(time.monotonic() - began), 60)
                    say(f"      {minutes} min {seconds:02d} s  {self._last_line()}")
        except KeyboardInterrupt:
            stop(process)
            raise
        if failed:
            self._explain()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1].strip()[:80] if lines else ""

    def _explain(self) -> None:
        """Raise the error that pip's output tells of."""
        text = self.log.read_text(errors="replace")
        for line in text.splitlines()[-15:]:
            print(f"    {line}", file=sys.stderr)
        if "No space left on device" in text:
            raise InstallError("the disk is full; TMPDIR and PIP_CACHE_DIR move pip's own files")
        if re.search(r"ConnectionError|TimeoutError|ProxyError|No matching distribution", text):
            raise InstallError(
                "pip reaches no package index that has what is needed; look at the network, the "
                "proxy and PIP_INDEX_URL, and run again"
            )
        raise InstallError(f"pip failed; {self.log} has all it said. Run again to go on from here")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and its children, and end what does not stop.

    Args:
        process: the leader of a process group.
    """
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        say("pip does not stop, so it is ended")
    # Also for children that outlive their parent.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- mmcv -----------------------------------------------------------------------------------------


class Mmcv:
    """The one package that has to be built, after torch and for it."""

    def __init__(self, environment: Environment, requirement: str, downloads: Path) -> None:
        self.environment = environment
        self.requirement = requirement
        self.downloads = downloads
        # pip does not know which torch an installed mmcv belongs to. With another one it may fail
        # on import or only in use, so it is written down. Others' mmcv has no note.
        self.note = environment.folder / "rednet-mmcv-for-torch"

    def is_ready(self) -> bool:
        """Whether the pinned mmcv is installed, belongs to this torch, and works."""
        found = self._try_operator()
        if not found or self.requirement != f"mmcv=={found['mmcv']}":
            return False
        return not self.note.exists() or self.note.read_text() == found["torch"]

    def _try_operator(self) -> dict[str, Any] | None:
        """What an operator ran on (on the GPU where mmcv can be built for it), None if it fails."""
        return probe(self.environment.python, PROBE_MMCV)

    def find_binary(self) -> Path | None:
        """Download a wheel that fits, if pip finds one."""
        if not any(self.downloads.iterdir()):
            options = ["--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
            place = ["--dest", str(self.downloads)]
            self.environment.pip("download", *options, *place, self.requirement)
        return next(self.downloads.glob("mmcv-*.whl"), None)

    def install(self) -> None:
        """Install a wheel where that works, else build mmcv."""
        torch = probe(self.environment.python, PROBE_TORCH)
        if not torch:
            raise InstallError(f"torch fails: try {self.environment.python} -c 'import torch'")
        if self.note.exists():
            self.note.unlink()
        binary = self.find_binary()
        if binary:
            say(f"      from {binary.name}")
            self.environment.install("--no-deps", "--force-reinstall", str(binary))
        if not (binary and self._try_operator()):
            check_compiler(self.environment.headers)
            self._build(torch)
            if not self._try_operator():
                raise InstallError(
                    "mmcv was built and does not work: try "
                    f"{self.environment.python} -c 'import mmcv.ops'"
                )
        self.note.write_text(torch["torch"])

    def _build(self, torch: dict[str, Any]) -> None:
        # No debug symbols: they take 40% of the time and 30 MB of 32.
        variables = {"MMCV_WITH_OPS": "1", "CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0".strip()}
        variables["MAX_JOBS"] = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        if torch["cuda"]:
            say("      building it, with CUDA operators: longer than the 10 minutes without")
        else:
            if torch["gpu"]:
                say("      torch sees a GPU, but there is no nvcc of its CUDA version, so mmdet's")
                say("      operators will lack CUDA; install that CUDA toolkit and run again")
            say("      building it, with CPU operators: about 10 minutes on 2 cores")
            variables.update(CUDA_VISIBLE_DEVICES="", FORCE_CUDA="0")
        # Nothing from pip's cache, which does not know for which torch it holds a wheel.
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--force-reinstall"]
        # PEP 517, or an older pip lets setup.py install it, which is not safe to interrupt.
        source = ["--no-binary", "mmcv", "--use-pep517"]
        self.environment.install(*options, *source, self.requirement, **variables)


# --- The whole ------------------------------------------------------------------------------------


def read_pins() -> list[str]:
    """Return the requirements of requirements.txt."""
    lines = (line.strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def install(folder: Path, python: str | None, extra: str | None) -> None:
    """Install everything that is missing.

    Args:
        folder: the virtual environment.
        python: the Python to make it with, if it does not exist.
        extra: one more of setup.cfg's extras to install.
    """
    environment = Environment(folder)
    environment.prepare(python)
    pins = read_pins()
    torch_pin, mmcv_pin = (
        next(pin for pin in pins if pin.startswith(name)) for name in ("torch==", "mmcv==")
    )
    stack = [pin for pin in pins if pin != mmcv_pin]

    with tempfile.TemporaryDirectory() as downloads:
        mmcv = Mmcv(environment, mmcv_pin, Path(downloads))
        if environment.has(stack):
            say("[1/3] the pinned stack is there")
        else:
            if not (environment.has([mmcv.requirement]) or mmcv.find_binary()):
                check_compiler(environment.headers)
            if not environment.has([torch_pin]):
                check_disk(places_used(environment))
            say("[1/3] torch, mmdet, mmpretrain ...: up to 3 GB to fetch, about 5 minutes")
            environment.install(*stack)
        if mmcv.is_ready():
            say(f"[2/3] {mmcv.requirement} is there and works")
        else:
            say(f"[2/3] {mmcv.requirement}")
            mmcv.install()
    package = f"{ROOT}[{extra}]" if extra else str(ROOT)
    say(f"[3/3] rednet, editable, from {package}")
    environment.install("--no-build-isolation", "--editable", package)


def places_used(environment: Environment) -> dict[str, Path]:
    """Where each entry of ``NEEDED_GIB`` will lie."""
    places = {"environment": environment.folder, "temporary": Path(tempfile.gettempdir())}
    cache = environment.pip("cache", "dir").stdout.strip()  # Empty where the cache is switched off.
    return {**places, "cache": Path(cache)} if cache else places


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    active = os.environ.get("VIRTUAL_ENV")
    parser.add_argument(
        "--venv",
        type=Path,
        default=Path(active) if active else ROOT / ".venv",
        help="the virtual environment, made if missing (default: the active one, else .venv)",
    )
    parser.add_argument("--python", help="the Python to make it with (default: this one)")
    extra = parser.add_mutually_exclusive_group()
    for name in ("cuda12", "cuda13"):
        text = f"also install CuPy for CUDA {name[-2:]}"
        extra.add_argument(f"--{name}", dest="extra", action="store_const", const=name, help=text)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the installation and return the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        install(options.venv.absolute(), options.python, options.extra)
    except InstallError as error:
        print(f"install: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; run again to go on", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    say(f"ready after {seconds:.0f} s; to activate it: source {options.venv}/bin/activate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
