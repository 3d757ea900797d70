"""The package as a whole: what importing it needs, what it offers, and what its wheel carries."""

from __future__ import annotations

import ast
import doctest
import importlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from mmengine.registry import Registry

from rednet.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

ROOT = Path(__file__).resolve().parents[1]

# What the package promises: an entry that goes or is renamed breaks somebody's code or config.
PUBLIC_NAMES = {
    "rednet": (
        "__version__",
        "checkpoint",
        "datasets",
        "deploy",
        "engine",
        "layers",
        "mmcv_ops",
        "models",
        "ops",
        "swap_conv",
        "switch_to_deploy",
        "visualization",
    ),
    "rednet.ops": ("backend", "explain_backends", "involution2d"),
    "rednet.layers": (
        "ACBlock",
        "CondConv2d",
        "ConvAWS2d",
        "DynamicConv2d",
        "Involution2d",
        "ODConv2d",
        "SAConv2d",
        "SPConv2d",
    ),
    "rednet.models": (
        "CifarQuick",
        "CifarResNet",
        "RedNet",
        "SwapConv",
        "WideResNet",
        "build_conv_cls_head",
        "build_dropout_cls_head",
        "swap_conv",
    ),
    "rednet.checkpoint": ("reading",),
    "rednet.mmcv_ops": ("register_finders",),
    "rednet.deploy": ("switch_to_deploy",),
    "rednet.datasets": ("Digits", "LoadImage"),
    "rednet.engine": (
        "BackboneCheckpointHook",
        "BareWeightsHook",
        "ConfusionMatrixHook",
        "CpuAmpOptimWrapper",
        "FrozenWeightsHook",
        "LayerVisualizationHook",
        "InterruptHook",
        "NonFiniteLossHook",
        "ResumableEpochTrainLoop",
        "ResumableIterTrainLoop",
        "SafeCheckpointHook",
        "SeededBatchSampler",
        "TemperatureAnnealHook",
        "TrainingCurveHook",
        "WholeCheckpointHook",
    ),
    "rednet.registry": (
        "CONV_LAYERS",
        "DATASETS",
        "DATA_SAMPLERS",
        "HOOKS",
        "LOOPS",
        "MODELS",
        "OPTIM_WRAPPERS",
        "TRANSFORMS",
    ),
    "rednet.visualization": ("RECORDERS", "find_layers", "view"),
}
REGISTERED_TYPES = [
    (
        MODELS,
        (
            *PUBLIC_NAMES["rednet.layers"],
            "CifarQuick",
            "CifarResNet",
            "ConvClsHead",
            "Deployed",
            "DropoutClsHead",
            "RedNet",
            "SwapConv",
            "WideResNet",
        ),
    ),
    (DATASETS, ("Digits",)),
    (DATA_SAMPLERS, ("SeededBatchSampler",)),
    (LOOPS, ("ResumableEpochTrainLoop", "ResumableIterTrainLoop")),
    (OPTIM_WRAPPERS, ("CpuAmpOptimWrapper",)),
    (TRANSFORMS, ("LoadImage",)),
    (
        HOOKS,
        (
            "BackboneCheckpointHook",
            "BareWeightsHook",
            "ConfusionMatrixHook",
            "FrozenWeightsHook",
            "LayerVisualizationHook",
            "InterruptHook",
            "NonFiniteLossHook",
            "SafeCheckpointHook",
            "TemperatureAnnealHook",
            "TrainingCurveHook",
            "WholeCheckpointHook",
        ),
    ),
]

# What a folder of rednet/ may import from its neighbors.
BASE = {"arguments", "errors", "files", "registry", "version"}
KNOWS = {
    "mmcv_ops": {"mmcv_ops"} | BASE,
    "ops": {"ops", "errors"},
    "layers": {"layers", "ops"} | BASE,
    "checkpoint": {"checkpoint", "layers", "ops"} | BASE,
    "models": {"models", "checkpoint", "layers", "ops"} | BASE,
    "datasets": {"datasets"} | BASE,
    "visualization": {"visualization", "models", "layers", "ops"} | BASE,
    "engine": {"engine", "visualization", "models", "checkpoint", "layers", "ops"} | BASE,
    "deploy": {"deploy", "models", "checkpoint", "layers", "ops"} | BASE,
    "cli": {
        "cli",
        "mmcv_ops",
        "engine",
        "visualization",
        "deploy",
        "models",
        "checkpoint",
        "layers",
        "ops",
    }
    | BASE,
}

# Lines of a file, and of a function without its signature and docstring.
FILE_LINES, FUNCTION_LINES = 400, 40

OPTIONAL = ("cupy", "matplotlib", "mmdet", "mmpretrain", "mmseg", "sklearn")
# None in sys.modules is how Python marks a module that cannot be imported.
IMPORT_WITHOUT_OPTIONAL = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL}))
import rednet
"""


def test_imports_without_optional_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_OPTIONAL], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_program_in_readme_runs() -> None:
    pytest.importorskip("torchvision")
    text = (ROOT / "README.md").read_text()
    program = text.partition("```python\nimport ")[2].partition("```")[0]
    exec(compile(f"import {program}", "README.md", "exec"), {})


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "rednet").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run_as_they_stand(module: str) -> None:
    if module.startswith("rednet.datasets."):
        pytest.importorskip("sklearn")
    results = doctest.testmod(importlib.import_module(module), globs={})
    assert results.attempted and not results.failed


@pytest.mark.parametrize("module", PUBLIC_NAMES)
def test_public_names(module: str) -> None:
    imported = importlib.import_module(module)
    assert sorted(imported.__all__) == sorted(PUBLIC_NAMES[module])
    for name in imported.__all__:
        assert getattr(imported, name) is not None


@pytest.mark.parametrize(("registry", "names"), REGISTERED_TYPES, ids=lambda value: str(value)[:40])
def test_registered_types(registry: Registry, names: tuple[str, ...]) -> None:
    ours = [
        name
        for name, item in registry.module_dict.items()
        if item.__module__.partition(".")[0] == "rednet"
    ]
    assert sorted(ours) == sorted(names)


def _imported_parts(code: ast.AST) -> Iterator[str]:
    """What code imports of rednet/: its folders and modules, and ``rednet`` for the package."""
    for node in ast.walk(code):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for package, _, rest in (name.partition(".") for name in names):
            if package == "rednet":
                yield rest.partition(".")[0] or package


@pytest.mark.parametrize("folder", KNOWS)
def test_imports_run_one_way(folder: str) -> None:
    for file in (ROOT / "rednet" / folder).rglob("*.py"):
        assert {*_imported_parts(ast.parse(file.read_text()))} <= KNOWS[folder], file


@pytest.mark.parametrize("folder", ["rednet", "tools", "tests", "docs"])
def test_files_and_functions_are_short(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        text = file.read_text()
        assert len(text.splitlines()) <= FILE_LINES, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert _body_lines(node) <= FUNCTION_LINES, (file, node.name)


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    first = function.body[1 if documented else 0]
    return (function.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import rednet", "rednet"),
        ("import rednet.ops.torch_library", "ops"),
        ("from rednet import ops", "ops"),
        ("def late():\n    from rednet.deploy.fusing import build_deployed", "deploy"),
    ],
)
def test_every_form_of_import_is_seen(code: str, part: str) -> None:
    assert list(_imported_parts(ast.parse(code))) == [part]


@pytest.mark.parametrize("name", ["configs", "tools", "model-index.yml"])
def test_checkout_has_its_files_where_openmmlab_looks(name: str) -> None:
    link = ROOT / "rednet" / ".mim" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("setuptools")
    # Built from a copy: setuptools leaves folders behind, and reads those of an earlier build.
    source = tmp_path_factory.mktemp("source")
    for name in ("rednet", "configs", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in (
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "model-index.yml",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, source)
    # Nothing runs the wheel's kernels, and optimizing them takes half a minute.
    setup = source / "setup.py"
    setup.write_text(setup.read_text().replace('"-O3"', '"-O0"'))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [path] = source.glob("rednet-*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_carries_configs_and_tools(wheel: zipfile.ZipFile) -> None:
    files = ["model-index.yml"]
    for folder in ("configs", "tools"):
        files += [
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    carried = [name for name in wheel.namelist() if name.startswith("rednet/.mim/")]
    assert sorted(carried) == sorted(f"rednet/.mim/{file}" for file in files)


def test_wheel_carries_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    carried = {name for name in wheel.namelist() if name.endswith(".py")}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "rednet").rglob("*.py")}
    assert {name for name in carried if "/.mim/" not in name} == {
        name for name in package if "/.mim/" not in name
    }


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_wheel_carries_the_cpu_kernels_and_their_sources(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "rednet" / "ops" / "cpu"
    carried = [name for name in wheel.namelist() if name.startswith("rednet/ops/cpu/")]
    assert any("_baseline." in name for name in carried)
    for source in (folder / "src").iterdir():
        assert f"rednet/ops/cpu/src/{source.name}" in carried


def test_wheel_carries_the_cuda_sources(wheel: zipfile.ZipFile) -> None:
    sources = (ROOT / "rednet" / "ops" / "cuda").glob("*.cu*")
    names = {f"rednet/ops/cuda/{source.name}" for source in sources}
    assert "rednet/ops/cuda/involution.cu" in names
    assert names <= set(wheel.namelist())


def test_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "rednet/py.typed" in wheel.namelist()


def test_wheel_refuses_no_fork_of_the_stack(metadata: Message) -> None:
    """OpenMMLab's packages are asked for by extras alone, so that forks can stand in."""
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert [text.split(">")[0] for text in required] == ["torch"]


def test_wheel_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "rednet"
    assert metadata["Version"] == importlib.import_module("rednet").__version__
    assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"])
    assert metadata["Requires-Python"] in ("<3.14,>=3.10", ">=3.10,<3.14")
    extras = {
        "classification",
        "cuda12",
        "cuda13",
        "detection",
        "development",
        "conversion",
        "docs",
    }
    assert set(metadata.get_all("Provides-Extra")) == {*extras, "export", "segmentation", "tests"}


def test_one_wheel_serves_every_python(wheel: zipfile.ZipFile) -> None:
    """ctypes loads the kernels, so neither their names nor the wheel's tags name a Python."""
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL")]
    assert "Tag: py3-none-" in wheel.read(name).decode()
    kernels = [name for name in wheel.namelist() if name.endswith(".so")]
    assert all(name.startswith("rednet/ops/cpu/_") and name.count(".") == 1 for name in kernels)
