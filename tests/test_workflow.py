"""The GitHub files are valid, and the workflow runs what CONTRIBUTING.md tells people to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rednet.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def commands() -> str:
    """All commands of the workflow, those of .ci/lint among them."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    runs = "\n".join(step.get("run", "") for job in jobs for step in job["steps"])
    return runs + "\n" + (ROOT / ".ci/lint").read_text() if ".ci/lint" in runs else runs


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("github-workflows", ".github/workflows/ci.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_the_files_fit_their_schemas(schema: str, file: str) -> None:
    pytest.importorskip("check_jsonschema", reason="the schemas are in check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, ROOT / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy", "docs/build.sh", "tests/docs/run_blocks.py"],
)
def test_the_workflow_runs_what_contributors_are_told_to_run(command: str) -> None:
    assert command in commands()
    assert command in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize(
    "command", [".ci/lint", "docs/build.sh", "python tests/docs/run_blocks.py", ".ci/matrix"]
)
def test_the_workflow_runs_what_ci_run_does(command: str) -> None:
    assert command in commands()
    assert f"\n{command}" in (ROOT / ".ci/run").read_text()


def test_scripts_that_the_workflow_calls_exist() -> None:
    words = [
        word for word in commands().split() if word.endswith((".sh", ".py", "requirements.txt"))
    ]
    assert "docs/build.sh" in words
    assert [word for word in words if not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_script_of_all_checks_explains_itself(option: str) -> None:
    done = subprocess.run([ROOT / "tests/run.sh", option], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: tests/run.sh [ARGUMENT OF PYTEST]...")


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
