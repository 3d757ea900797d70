from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rednet.cli.arguments import config_parser, image_size
from rednet.cli.command import run
from rednet.cli.paths import check_checkpoint, check_file, check_output
from rednet.errors import ArgumentError, ImageError, UserError


def raising(error: Exception):
    def main(arguments: Sequence[str] | None) -> None:
        raise error

    return main


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    assert run(seen.append, ["a"]) == 0
    assert seen == [["a"]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [UserError, ArgumentError, ImageError])
def test_an_error_of_the_users_is_one_line(
    kind: type[UserError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(kind("a thing: is missing"))) == 2
    assert capsys.readouterr().err == "error: a thing: is missing\n"


def test_the_traceback_of_a_worker_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    message = (
        "Caught ImageError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "loading.py", line 1, in transform\n'
        "rednet.errors.ImageError: cannot read image a.jpg: truncated\n"
    )
    assert run(raising(ImageError(message))) == 2
    assert capsys.readouterr().err == "error: cannot read image a.jpg: truncated\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a fault"):
        run(raising(ValueError("a fault")))


def test_options_are_parsed() -> None:
    arguments = ["config.py", "--cfg-options", "a.b=1", "c=[1,2]", "d=None"]
    parsed = config_parser("").parse_args(arguments)
    assert parsed.cfg_options == {"a.b": 1, "c": [1, 2], "d": None}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("depth", "--cfg-options expects key=value, got 'depth'"),
        ("=3", "--cfg-options expects key=value, got '=3'"),
        ("a=[1,2", "--cfg-options a=[1,2: its brackets do not close"),
    ],
)
def test_an_option_that_cannot_be_read_is_named(option: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_parser("").parse_args(["config.py", "--cfg-options", "b=1", option])
    assert str(caught.value) == message


def test_a_remote_file_is_not_looked_for() -> None:
    check_file("https://example.org/model.pth", "the checkpoint")
    with pytest.raises(UserError, match="the checkpoint model.pth is not a file"):
        check_file("model.pth", "the checkpoint")


@pytest.mark.skipif(torch.__version__ < (2, 4), reason="this torch reads none ahead")
def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    check_checkpoint("https://example.org/model.pth", "load_from")
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(dict(weight=torch.zeros(1)), good)
    check_checkpoint(str(good), "load_from")
    bad.write_text("hello")
    with pytest.raises(UserError, match=f"^load_from {bad} is not a checkpoint"):
        check_checkpoint(str(bad), "load_from")


def test_what_can_be_written_is_not_created(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deep" / "a.json", "--out")
    assert not (tmp_path / "new").exists()
    file = tmp_path / "a.json"
    file.write_text("")
    check_output(file, "--out")
    check_output(tmp_path / "pictures", "--show-dir", folder=True)
    check_output(tmp_path, "--show-dir", folder=True)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("", False, "--out {0} must be a file, but is a directory"),
        ("file", True, "--out {0}/file cannot be created: {0}/file is a file, not a directory"),
        (
            "file/a/b",
            True,
            "--out {0}/file/a/b cannot be created: {0}/file is a file, not a directory",
        ),
        (
            "file/a/b",
            False,
            "--out {0}/file/a/b cannot be created: {0}/file is a file, not a directory",
        ),
    ],
)
def test_a_place_that_cannot_be_written(
    tmp_path: Path, name: str, folder: bool, message: str
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError) as caught:
        check_output(tmp_path / name, "--out", folder=folder)
    assert str(caught.value) == message.format(tmp_path)
    assert (tmp_path / "file").read_text() == "kept"


def test_what_is_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    sources = (None, str(tmp_path / "file"))
    check_output("other", "--out", sources=sources)
    with pytest.raises(UserError, match="^--out file would replace a file that is read"):
        check_output("file", "--out", sources=sources)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"no permission to write {tmp_path}$"):
        check_output(tmp_path / "new" / "a.json", "--out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("shape", "scope", "size"),
    [
        (None, None, (224, 224)),
        (None, "mmpretrain", (224, 224)),
        (None, "mmdet", (800, 1280)),
        ([32], "mmdet", (32, 32)),
        ([32, 48], None, (32, 48)),
    ],
)
def test_the_size_of_the_images(
    shape: list[int] | None, scope: str | None, size: tuple[int, int]
) -> None:
    assert image_size(shape, scope) == size


@pytest.mark.parametrize("shape", [[1, 2, 3], [0], [32, -1]])
def test_a_shape_that_is_none(shape: list[int]) -> None:
    with pytest.raises(UserError, match="--shape expects a height and a width of at least 1, got"):
        image_size(shape)
