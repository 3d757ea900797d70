"""Which of several processes reports what stopped them."""

from __future__ import annotations

import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch import distributed

from rednet.cli import processes
from rednet.cli.command import run
from rednet.cli.failures import setting_up
from rednet.engine import InterruptHook
from rednet.errors import UserError

VARIABLES = {
    "RANK": "WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long processes wait, without waiting; none of the launchers' variables is set."""
    for name in ("MASTER_ADDR", "MASTER_PORT", *VARIABLES, *VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    waited: list[float] = []
    monkeypatch.setattr("rednet.cli.processes.time.sleep", waited.append)
    return waited


def reports() -> int:
    made: list[int] = []
    processes.report_once(lambda: made.append(1))
    return len(made)


@pytest.mark.parametrize("rank", VARIABLES)
def test_without_a_store_rank_0_reports_and_the_others_wait(
    rank: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLES[rank], "2")
    monkeypatch.setenv(rank, "0")
    assert reports() == 1 and waits == []
    monkeypatch.setenv(rank, "1")
    assert reports() == 1 and waits == [10.0]


def test_one_process_does_not_wait(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports() == 1
    monkeypatch.setenv("SLURM_PROCID", "0")  # a shell of salloc
    assert reports() == 1 and waits == []


def test_the_first_in_the_store_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    store = distributed.HashStore()
    monkeypatch.setattr(processes, "_store", lambda: store)
    assert [reports(), reports(), reports()] == [1, 0, 0]


def test_a_process_whose_first_was_ended_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_PATIENCE", timedelta(milliseconds=1))
    store = distributed.HashStore()
    store.add("rednet/failures/0", 1)
    monkeypatch.setattr(processes, "_store", lambda: store)
    assert reports() == 1


def test_a_process_that_lost_another_waits_before_it_reports(
    waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert run(_lose_a_process, []) == 2
    assert waits == [10.0] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "error: another process of this run ended" in capsys.readouterr().err
    signal.signal(signal.SIGTERM, handler)


def test_a_training_that_lost_a_process_and_was_told_to_end_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hook, runner = InterruptHook(), SimpleNamespace(val_loop=None, iter=0)
    hook.before_train(runner)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        run(_lose_a_process, [])
    hook.after_train(runner)  # type: ignore[arg-type]
    assert not capsys.readouterr().err


def test_a_command_leaves_the_process_group(capsys: pytest.CaptureFixture[str]) -> None:
    def connect(arguments: list[str]) -> None:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        for message in arguments:
            raise UserError(message)

    assert run(connect, ["no images"]) == 2 and not distributed.is_initialized()
    assert "error: no images" in capsys.readouterr().err
    assert run(connect, []) == 0 and not distributed.is_initialized()


def _lose_a_process(_: object) -> None:
    with setting_up():
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
