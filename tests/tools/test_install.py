"""The installation script: what it checks, what it says, and what it asks of pip."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tools import install
from tools.install import GIB, Environment, InstallError, Mmcv

GPU = {"torch": "2.10.0+cu128", "gpu": True, "cuda": True}
GPU_WITHOUT_NVCC = {**GPU, "cuda": False}
CPU = {**GPU, "gpu": False, "cuda": False}


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def fake_python(path: Path, version: str) -> str:
    """A Python that answers the probe and nothing else."""
    answer = f'{{"version": "{version}", "virtual": true, "venv": true, "headers": "/nowhere"}}'
    return program(path, f"echo '{answer}'")


def test_pins_are_exact() -> None:
    for pin in install.read_pins():
        specifiers = list(Requirement(pin).specifier)
        assert [specifier.operator for specifier in specifiers] == ["=="], pin


class TestPython:
    @pytest.mark.parametrize("version", ["3.9.18", "3.13.0"])
    def test_refuses_other_versions(self, tmp_path: Path, version: str) -> None:
        python = fake_python(tmp_path / "python", version)
        with pytest.raises(InstallError, match=f"3.10, 3.11 or 3.12 is needed.* is {version}"):
            install.find_python(python)

    @pytest.mark.parametrize("version", ["3.10.0", "3.11.7", "3.12.12"])
    def test_accepts_supported_versions(self, tmp_path: Path, version: str) -> None:
        python = fake_python(tmp_path / "python", version)
        assert install.find_python(python) == python

    @pytest.mark.parametrize("answer", ["exit 1", "exit 0", "echo hello", "echo 3"])
    def test_refuses_what_is_no_python(self, tmp_path: Path, answer: str) -> None:
        python = program(tmp_path / "python", answer)
        with pytest.raises(InstallError, match="does not run"):
            install.find_python(python)

    def test_falls_back_to_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(install.sys, "executable", str(tmp_path / "missing"))
        monkeypatch.setenv("PATH", str(tmp_path))
        fake_python(tmp_path / "python3.12", "3.12.1")
        assert install.find_python(None) == "python3.12"

    def test_names_all_it_has_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(install.sys, "executable", fake_python(tmp_path / "own", "3.13.1"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InstallError, match=r"own is 3\.13\.1, python3\.11 does not run"):
            install.find_python(None)


class TestDisk:
    @pytest.fixture(autouse=True)
    def small_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            install.shutil, "disk_usage", lambda folder: SimpleNamespace(free=9.5 * GIB)
        )

    def test_needs_of_one_disk_add_up(self, tmp_path: Path) -> None:
        folders = {"environment": tmp_path, "temporary": tmp_path, "cache": tmp_path}
        total = sum(install.NEEDED_GIB.values())
        with pytest.raises(InstallError, match=rf"9\.5 GiB free, and about {total} are needed"):
            install.check_disk(folders)

    def test_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(install.NEEDED_GIB, "environment", 9)
        install.check_disk({"environment": tmp_path / "not" / "there" / "yet"})


class TestCompiler:
    @pytest.fixture
    def headers(self, tmp_path: Path) -> Path:
        (tmp_path / "Python.h").touch()
        return tmp_path

    @pytest.mark.parametrize("compiler", ["false", "/nowhere/c++", "false -v"])
    def test_broken(self, headers: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(InstallError, match=re.escape(f"{compiler!r} is no working")):
            install.check_compiler(headers)

    def test_missing_headers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "true")
        with pytest.raises(InstallError, match=r"Python\.h is missing"):
            install.check_compiler(tmp_path)

    @pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
    def test_working(self, headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXX", raising=False)
        install.check_compiler(headers)


class TestEnvironment:
    @pytest.fixture
    def environment(self, tmp_path: Path) -> Environment:
        return Environment(tmp_path / "env")

    def test_leaves_other_folders_alone(self, environment: Environment) -> None:
        environment.folder.mkdir()
        (environment.folder / "thesis.tex").touch()
        with pytest.raises(InstallError, match="is no virtual environment"):
            environment.prepare(None)
        assert (environment.folder / "thesis.tex").exists()

    def test_refuses_an_environment_of_another_python(self, environment: Environment) -> None:
        fake_python(Path(environment.python), "3.13.0")
        with pytest.raises(InstallError, match=r"has Python 3\.13\.0, and"):
            environment.prepare(None)

    def test_does_not_mix_two_pythons(self, environment: Environment, tmp_path: Path) -> None:
        fake_python(Path(environment.python), "3.11.7")
        asked = fake_python(tmp_path / "python", "3.12.1")
        with pytest.raises(InstallError, match=rf"3\.11\.7, and --python {asked} is 3\.12\.1"):
            environment.prepare(asked)

    def test_says_when_venv_is_missing(self, environment: Environment, tmp_path: Path) -> None:
        answer = '{"version": "3.11.2", "virtual": false, "venv": false, "headers": "/nowhere"}'
        python = program(tmp_path / "python", f"echo '{answer}'")
        with pytest.raises(InstallError, match="has no venv module"):
            environment.prepare(python)

    def test_sweeps_what_was_cut_short(
        self, environment: Environment, capsys: pytest.CaptureFixture[str]
    ) -> None:
        site = environment.folder / "lib" / "python3.11" / "site-packages"
        for name, files in {
            "whole-1.0.dist-info": ["METADATA", "INSTALLER", "RECORD"],
            "early-1.0.dist-info": ["METADATA"],
            "late-1.0.dist-info": ["METADATA", "RECORD"],
            "~orch": ["__init__.py"],
        }.items():
            (site / name).mkdir(parents=True)
            for file in files:
                (site / name / file).touch()
        environment._sweep()
        assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]
        said = capsys.readouterr().out
        assert "early-1.0" in said and "late-1.0" in said and "whole" not in said

    @pytest.mark.parametrize(
        ("line", "error"),
        [
            ("OSError: [Errno 28] No space left on device", "the disk is full"),
            ("ReadTimeoutError(... Read timed out. (read timeout=15))", "no package index"),
            ("ERROR: No matching distribution found for torch==2.10.0", "no package index"),
            ("error: command '/usr/bin/g++' failed with exit code 1", "pip failed; .* has all"),
        ],
    )
    def test_explains_failures(self, environment: Environment, line: str, error: str) -> None:
        environment.lock = os.open(os.devnull, os.O_RDONLY)
        program(Path(environment.python), f'echo "{line}"; exit 1')
        with pytest.raises(InstallError, match=error):
            environment.install("anything")
        os.close(environment.lock)

    def test_explains_an_unreachable_index(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the real pip says of an index that refuses connections."""
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        environment.folder.mkdir()
        environment.python = sys.executable
        environment.lock = os.open(os.devnull, os.O_RDONLY)
        with pytest.raises(InstallError, match="no package index"):
            environment.install("--dry-run", "a-package-that-nobody-has")
        os.close(environment.lock)

    def test_stop_ends_children_too(self) -> None:
        command = ["sh", "-c", "sleep 60 & echo started; wait"]
        # A shell's background job, which this may be, ignores SIGINT and hands that on.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        install.stop(process)
        # The child held the pipe's other end: end of file says that it is gone.
        assert process.stdout.read() == b""
        assert process.returncode == -signal.SIGINT
        process.stdout.close()


class TestMmcv:
    """Which mmcv is trusted, and how one is built."""

    @pytest.fixture
    def installed(self) -> list[tuple[tuple[str, ...], dict[str, str]]]:
        """The arguments and environment variables of each ``pip install``."""
        return []

    @pytest.fixture
    def mmcv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list) -> Mmcv:
        environment = Environment(tmp_path)
        environment.headers = tmp_path
        monkeypatch.setattr(environment, "pip", lambda *arguments: None)
        monkeypatch.setattr(
            environment, "install", lambda *a, **variables: installed.append((a, variables))
        )
        monkeypatch.setattr(install, "check_compiler", lambda headers: None)
        (tmp_path / "downloads").mkdir()
        return Mmcv(environment, "mmcv==2.1.0", tmp_path / "downloads")

    def answer(self, monkeypatch: pytest.MonkeyPatch, torch: dict, mmcv: list[str | None]) -> None:
        """Let the probes find this torch, and time after time an mmcv that works, or none."""
        versions = iter(mmcv)

        def probe(python: str, code: str) -> dict | None:
            if code == install.PROBE_TORCH:
                return torch
            version = next(versions)
            return {**torch, "mmcv": version} if version else None

        monkeypatch.setattr(install, "probe", probe)

    @pytest.mark.parametrize(
        ("note", "version", "ready"),
        [
            ("2.10.0+cu128", "2.1.0", True),
            ("2.10.0+cu128", None, False),
            ("2.10.0+cu128", "2.0.1", False),
            ("2.9.1+cu128", "2.1.0", False),
            (None, "2.1.0", True),
        ],
    )
    def test_is_ready(
        self,
        mmcv: Mmcv,
        monkeypatch: pytest.MonkeyPatch,
        note: str | None,
        version: str | None,
        ready: bool,
    ) -> None:
        if note:
            mmcv.note.write_text(note)
        self.answer(monkeypatch, CPU, [version])
        assert mmcv.is_ready() is ready

    def test_takes_a_binary(
        self, mmcv: Mmcv, monkeypatch: pytest.MonkeyPatch, installed: list
    ) -> None:
        self.answer(monkeypatch, CPU, ["2.1.0"])
        (mmcv.downloads / "mmcv-2.1.0.whl").touch()
        mmcv.install()
        [(arguments, variables)] = installed
        assert arguments[-1] == str(mmcv.downloads / "mmcv-2.1.0.whl") and not variables
        assert mmcv.note.read_text() == CPU["torch"]

    def test_builds_where_the_binary_is_for_another_torch(
        self, mmcv: Mmcv, monkeypatch: pytest.MonkeyPatch, installed: list
    ) -> None:
        self.answer(monkeypatch, CPU, [None, "2.1.0"])
        (mmcv.downloads / "mmcv-2.1.0.whl").touch()
        mmcv.install()
        assert [arguments[-1] for arguments, _ in installed][1] == "mmcv==2.1.0"

    @pytest.mark.parametrize("torch", [CPU, GPU, GPU_WITHOUT_NVCC])
    def test_builds(
        self,
        mmcv: Mmcv,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        installed: list,
        torch: dict,
    ) -> None:
        self.answer(monkeypatch, torch, ["2.1.0"])
        mmcv.install()
        [(arguments, variables)] = installed
        assert {"--no-build-isolation", "--no-cache-dir"} <= set(arguments)
        assert variables["MMCV_WITH_OPS"] == "1" and "-g0" in variables["CFLAGS"]
        assert (variables.get("CUDA_VISIBLE_DEVICES") is None) is torch["cuda"]
        assert ("will lack CUDA" in capsys.readouterr().out) is (torch is GPU_WITHOUT_NVCC)

    def test_a_failed_build_leaves_no_note(
        self, mmcv: Mmcv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mmcv.note.write_text("2.9.1")
        self.answer(monkeypatch, CPU, [None])
        with pytest.raises(InstallError, match="was built and does not work"):
            mmcv.install()
        assert not mmcv.note.exists()
