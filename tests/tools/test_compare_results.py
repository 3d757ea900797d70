from __future__ import annotations

import json
from pathlib import Path

import compare_results
import pytest
import run_all
import timing
import torch

from rednet.errors import UserError


def written(path: Path, **milliseconds: float) -> str:
    """A file of results with one case, as the benchmarks of operators and layers write it."""
    results = {name: dict(milliseconds=time) for name, time in milliseconds.items()}
    records = [dict(case=dict(side=7, batch=8), results=results)]
    machine = timing.describe_machine(torch.device("cpu"))
    path.write_text(json.dumps(dict(machine=machine, arguments={}, records=records)))
    return str(path)


def test_both_times_and_their_ratio_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before.json", ours=2.0, gone=1.0)
    after = written(tmp_path / "after.json", ours=2.1, new=1.0)
    compare_results.main([before, after])
    out = capsys.readouterr().out
    assert "| side=7 batch=8 | ours | 2 | 2.1 | 1.05 |" in out
    assert "gone" not in out and "new" not in out


def test_what_is_slower_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "before.json", ours=2.0)
    after = written(tmp_path / "after.json", ours=3.0)
    with pytest.raises(SystemExit) as caught:
        compare_results.main([before, after])
    assert caught.value.code == 1
    assert "slower by more than 10%: side=7 batch=8 ours" in capsys.readouterr().out
    compare_results.main([before, after, "--tolerance", "0.6"])


def test_a_machine_of_another_speed_is_compared_by_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before.json", ours=2.0, peer=4.0)
    after = written(tmp_path / "after.json", ours=4.0, peer=8.0)
    compare_results.main([before, after, "--relative-to", "peer"])
    assert "| ours | 0.5 | 0.5 | 1.00 |" in capsys.readouterr().out


def test_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(written(tmp_path / "models.json"))
    content = json.loads(path.read_text()) | {"records": [dict(model="net", milliseconds=5.0)]}
    path.write_text(json.dumps(content))
    compare_results.main([str(tmp_path), str(tmp_path)])
    assert "|  | net | 5 | 5 | 1.00 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "no machine and records")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare_results.main([str(path), str(path)])


def test_results_without_a_common_case_are_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "before.json", ours=1.0)
    after = written(tmp_path / "after.json", other=1.0)
    with pytest.raises(UserError, match="no case in common"):
        compare_results.main([before, after])


def test_all_tables_are_made_by_commands_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    class Done:
        returncode = 0

    def record(command: list[str], **_: object) -> Done:
        commands.append(command)
        return Done()

    monkeypatch.setattr(run_all.subprocess, "run", record)
    run_all.main([str(tmp_path / "new")])
    assert len(commands) == len(run_all.TABLES)
    for command in commands:
        assert Path(command[1]).is_file()
        out = Path(command[command.index("--out") + 1])
        assert out.parent == tmp_path / "new" and out.stem in run_all.TABLES


def test_a_benchmark_that_fails_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failed:
        returncode = 3

    monkeypatch.setattr(run_all.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(UserError, match="network-1: benchmark_model.py ended with exit code 3"):
        run_all.main([str(tmp_path), "--tables", "network-1"])
