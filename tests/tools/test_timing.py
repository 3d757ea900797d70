from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import timing
import torch
from timing import Clock, Rates, peak_memory, saved_activations

from rednet.errors import UserError

CPU = torch.device("cpu")


def test_turns_are_shuffled_and_short_actions_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def action(name: str, seconds: float) -> timing.Action:
        def run() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    actions = {"long": action("long", 0.5), "short": action("short", 0.008)}
    times = Clock(CPU).interleaved(actions, turns=8)
    assert times["long"].median == pytest.approx(500)
    assert times["short"].best == pytest.approx(8)
    turns = {tuple(calls[start : start + 3]) for start in range(4, len(calls), 3)}
    # 8 ms fit into 20 twice; either may be first
    assert turns == {("long", "short", "short"), ("short", "short", "long")}


def test_the_rates_bound_the_time() -> None:
    rates = Rates(bytes=1000, multiply_adds=100)
    assert rates.least_milliseconds(bytes=10, multiply_adds=0) == 10
    assert rates.least_milliseconds(bytes=10, multiply_adds=2) == 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_counts_what_was_given_back() -> None:
    peak = peak_memory(lambda: torch.ones(2**22).sum(), CPU)  # 16 MiB, freed at once
    assert peak is not None and 15 < peak / 2**20 < 20


def test_saved_storages_count_once_and_parameters_do_not() -> None:
    weight, image = torch.nn.Parameter(torch.randn(4, 4)), torch.randn(8, 4, requires_grad=True)
    # The image is saved by both products, and the second saves a view of the weight.
    assert saved_activations(lambda: (image @ weight) + (image @ weight.t())) == 8 * 4 * 4


def test_what_the_command_line_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    timing.add_arguments(parser, turns=7)
    args = parser.parse_args([])
    assert (args.device, args.threads, args.turns, args.out) == (CPU, None, 7, None)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    timing.set_up(parser.parse_args(["--threads", "3"]))
    assert chosen == [3]


@pytest.mark.parametrize("arguments", [["--turns", "0"], ["--threads", "-1"], ["--out", "a.txt"]])
def test_arguments_that_are_refused(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    timing.add_arguments(parser, turns=7)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match="--out .*a.json must be a file"):
        timing.set_up(argparse.Namespace(out=tmp_path / "a.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--device cuda:0: PyTorch finds no CUDA device"):
        timing.set_up(argparse.Namespace(out=None, threads=None, device=torch.device("cuda:0")))


def test_a_gpu_is_set_where_it_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    for device in ("cuda", "cuda:1"):
        timing.set_up(argparse.Namespace(out=None, threads=None, device=torch.device(device)))
    assert chosen == [1]


def test_peers_come_from_files_and_modules(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def twice(x):\n    return 2 * x\n")
    label, function = timing.load_peer(f"{path}:twice")
    assert label == "mine:twice" and function(2) == 4
    assert timing.load_peer(str(path), "twice")[1](3) == 6
    assert timing.load_peer("math:sqrt") == ("math:sqrt", __import__("math").sqrt)
    for address, message in {
        f"{path}:thrice": "defines no 'thrice'",
        f"{tmp_path}/none.py:twice": "there is no file",
        "no_such_module:twice": "cannot be imported",
        "math": "expected FILE.py:NAME",
    }.items():
        with pytest.raises(UserError, match=message):
            timing.load_peer(address)


def test_results_name_the_machine(tmp_path: Path) -> None:
    machine = timing.describe_machine(CPU)
    assert machine["torch"] == torch.__version__
    assert timing.in_words(machine).startswith(machine["device"])
    args = argparse.Namespace(device=CPU, out=tmp_path / "a.json")
    timing.write_results(args.out, machine, args, [{"milliseconds": 1.5}])
    written = json.loads(args.out.read_text())
    assert written["records"] == [{"milliseconds": 1.5}]
    assert written["arguments"]["device"] == "cpu"


def test_tables_are_markdown() -> None:
    assert timing.table_head("a", "b") == "| a | b |\n|---|---|"
    assert timing.table_row("a", 1) == "| a | 1 |"
    assert (timing.in_mib(3 * 2**20), timing.in_mib(None)) == ("3", "-")
