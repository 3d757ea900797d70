"""Files that are written aside and renamed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rednet.errors import UserError
from rednet.files import remove_parts, write_file


class Killed(BaseException):
    pass


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    write_file(path, b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"^{path} cannot be written: No space left on device$"):
        write_file(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    rename = os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), rename(*names)))
    write_file(tmp_path / "a.pth", b"content")
    assert done == ["file", "rename", "folder"]


def test_a_kill_just_after_the_rename_is_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def rename_and_kill(*names: str) -> None:
        rename(*names)
        raise Killed

    monkeypatch.setattr(os, "replace", rename_and_kill)
    with pytest.raises(Killed):
        write_file(tmp_path / "a.pth", b"content")
    assert (tmp_path / "a.pth").read_bytes() == b"content"


def test_the_part_that_is_being_written_stays_until_its_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two trainings share a work directory, and one begins while the other saves."""

    def begin_another_training(*_: object) -> None:
        remove_parts(tmp_path)

    rename = os.replace
    monkeypatch.setattr(os, "fsync", begin_another_training)
    monkeypatch.setattr(os, "replace", lambda *names: (remove_parts(tmp_path), rename(*names)))
    write_file(tmp_path / "a.pth", b"content")
    assert (tmp_path / "a.pth").read_bytes() == b"content"


def test_only_files_can_be_parts(tmp_path: Path) -> None:
    (tmp_path / ".a.rednet-part").mkdir()
    (tmp_path / ".b.rednet-part").touch()
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".a.rednet-part"]


@pytest.fixture(params=[0o022, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    write_file(tmp_path / "a.pth", b"content")
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("a.pth", "plain")]
    assert modes[0] == modes[1]
    assert os.umask(umask) == umask
