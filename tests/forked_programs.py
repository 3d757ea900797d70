"""Programs in forks of a process that has imported PyTorch and mmengine.

A program that imports rednet spends nearly all of its time in importing these. A fork begins after
them, and what a test is about (rednet, mmcv, torchvision, OpenMMLab's other libraries) is still
to be imported there. From then on it is the process that ``python -c`` starts, up to its exit.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# torchvision imports the second, mmdet the last two.
_IMPORTED = (
    *("torch", "torch._dynamo", "mmengine.runner"),
    *("matplotlib.pyplot", "sklearn.gaussian_process"),
)
_TOOL = """
import os, runpy, sys
os.environ["PATH"] = ""  # no tool needs other programs
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_forked(
    code: str, *arguments: str, path: Sequence[Path] = (), folder: Path = ROOT
) -> subprocess.CompletedProcess:
    """Runs a program to its end.

    Args:
        code: Its text.
        arguments: Its ``sys.argv``.
        path: Folders of PYTHONPATH, before the checkout.
        folder: The folder that it runs in.
    """
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("stdout", "stderr")]
        job = dict(code=code, arguments=arguments or ["-c"], folder=str(folder))
        job |= dict(path=[str(each) for each in (*path, ROOT)], files=[str(each) for each in files])
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(f"{json.dumps(job)}\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, status, *(each.read_text() for each in files))


def run_tool(
    tool: str, *arguments: str | Path, path: Sequence[Path] = (), folder: Path = ROOT
) -> subprocess.CompletedProcess:
    """Runs a file of ``tools/`` with arguments, as ``python tools/TOOL`` does."""
    command = [str(ROOT / "tools" / tool), *map(str, arguments)]
    return run_forked(_TOOL, *command, path=path, folder=folder)


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def _next_job() -> dict[str, Any] | None:
    """Waits for jobs in the server; in a fork returns its job, in the server None at the end."""
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            return json.loads(line)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _become(job: dict[str, Any]) -> None:
    """Gives this process the files, the folder and the paths of a job."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, name in enumerate(job["files"], start=1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(job["folder"])
    os.environ["PYTHONPATH"] = os.pathsep.join(job["path"])
    sys.argv[:] = job["arguments"]
    first = sys.argv[0]
    sys.path[:1] = ["" if first == "-c" else str(Path(first).parent), *job["path"]]


if __name__ == "__main__":
    for _name in _IMPORTED:
        with suppress(ImportError):  # not all of them are required
            importlib.import_module(_name)
    gc.freeze()
    _job = _next_job()
    if _job is not None:
        _become(_job)
        exec(compile(_job["code"], "<string>", "exec"), {"__name__": "__main__"})
