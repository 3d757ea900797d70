"""Who gives ``mmcv._ext``, and what is said of a broken set-up, in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.forked_programs import run_forked, run_tool

pytest.importorskip("torchvision")
ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path | None = None) -> str:
    """The last line that a program prints, of its error if it fails."""
    done = run_forked(code, path=[path] if path else [])
    return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]


def lacks_compiled_operators() -> bool:
    import mmcv

    return not list(Path(mmcv.__file__).parent.glob("_ext*.so"))


needs_lite = pytest.mark.skipif(
    not lacks_compiled_operators(), reason="mmcv has compiled operators here"
)


@needs_lite
def test_importing_rednet_imports_neither_torchvision_nor_the_operators() -> None:
    code = "import sys, rednet; print({'torchvision', 'mmcv._ext', 'mmcv.ops'} & {*sys.modules})"
    assert run(code) == "set()"


@needs_lite
def test_mmcv_finds_the_operators() -> None:
    code = "import rednet, mmcv.utils; print(importlib.util.find_spec('mmcv._ext').origin)"
    assert run(f"import importlib.util; {code}") == "rednet.mmcv_ops"


@needs_lite
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="mmcv calls pkgutil.find_loader")
def test_mmcv_says_that_its_operators_exist() -> None:
    code = "import rednet; from mmcv.utils.ext_loader import check_ops_exist"
    assert run(f"{code}; print(check_ops_exist())") == "True"


@pytest.mark.skipif(lacks_compiled_operators(), reason="mmcv has no compiled operators here")
def test_compiled_operators_win() -> None:
    code = "import rednet, mmcv._ext; print(mmcv._ext.__file__)"
    assert run(code).endswith(".so")


@needs_lite
@pytest.mark.parametrize(
    ("package", "compiled"), [("mmcv-lite", "mmcv==2.1.0"), ("onedl-mmcv", "onedl-mmcv")]
)
def test_what_is_not_served_raises_at_its_use(package: str, compiled: str) -> None:
    code = "import rednet, torch; from mmcv.ops import box_iou_rotated\n"
    code += "from rednet.mmcv_ops import operators\n"
    code += f"operators.installed_version = lambda name: name == {package!r}\n"
    line = run(f"{code}box_iou_rotated(torch.rand(2, 5), torch.rand(2, 5))")
    assert f"box_iou_rotated needs compiled mmcv, and {package} is installed without" in line
    assert f"pip uninstall -y {package}, then" in line and line.endswith(f" {compiled}")


# ---- set-ups that do not fit together

DETECTOR = "import rednet; from rednet.cli.preflight import check_scope; check_scope('mmdet')"
CLASSIFIER = DETECTOR.replace("mmdet", "mmpretrain")
REPORT = "import runpy, sys; sys.argv[1:] = []; runpy.run_module('rednet', run_name='__main__')"


def _torchvision(folder: Path, text: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(text)
    return folder


@needs_lite
@pytest.mark.parametrize("code", [DETECTOR, CLASSIFIER])
def test_no_torchvision(code: str, tmp_path: Path) -> None:
    line = run(code, _torchvision(tmp_path, "raise ImportError('No module named torchvision')"))
    assert "torchvision, which is not installed: pip install torchvision" in line


@needs_lite
@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import rednet, mmcv.ops", "RuntimeError", "operator torchvision::nms does not exist"),
        (REPORT, "AttributeError", "module 'torch.library' has no attribute 'register_fake'"),
    ],
    ids=["older than torch", "newer than torch"],
)
def test_a_torchvision_that_does_not_fit_torch(
    code: str, error: str, message: str, tmp_path: Path
) -> None:
    line = run(code, _torchvision(tmp_path, f"raise {error}({message!r})"))
    assert f"does not fit torch {torch.__version__} ({message}): install" in line


def test_a_classifier_is_not_trained_with_a_torchvision_that_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    path = _torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    config = ROOT / "configs/demo/rednet26_digits.py"
    done = run_tool("train.py", config, path=[path], folder=tmp_path)
    assert done.returncode == 2
    assert "error: mmpretrain uses torchvision" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def broken_mmcv(tmp_path: Path) -> Path:
    """A folder with the mmcv of this environment, but a compiled module that does not load."""
    import mmcv

    (tmp_path / "mmcv").mkdir()
    for each in Path(mmcv.__file__).parent.iterdir():
        if not each.name.startswith("_ext"):
            (tmp_path / "mmcv" / each.name).symlink_to(each)
    (tmp_path / "mmcv" / "_ext.so").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("code", [DETECTOR, REPORT, "import rednet, mmcv.ops"])
def test_compiled_operators_that_do_not_load(code: str, broken_mmcv: Path) -> None:
    line = run(code, broken_mmcv)
    assert "mmcv's compiled operators do not load" in line and "_ext.so: file too short" in line
    assert f"build mmcv for torch {torch.__version__} again" in line
    assert "pip uninstall -y mmcv && pip install mmcv-lite==" in line


def test_packages_that_share_their_files(tmp_path: Path) -> None:
    for name in ("mmcv", "mmcv_lite"):
        (tmp_path / f"{name}-2.1.0.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 2.1.0\n"
        (tmp_path / f"{name}-2.1.0.dist-info" / "METADATA").write_text(metadata)
    line = run("from rednet.mmcv_ops.installation import *; print(*notes_on_mmcv())", tmp_path)
    # Where a fork is installed too, it is named as well.
    assert line.startswith("mmcv and mmcv-lite ")
    assert "are installed over each other's files" in line
    assert "pip uninstall -y mmcv mmcv-lite" in line


@needs_lite
def test_mmdet_imported_first() -> None:
    pytest.importorskip("mmdet")
    # What the failed import leaves behind does not disturb the next one.
    code = """
try:
    import mmdet.models
except ImportError as error:
    import rednet, mmdet.models
    print(error, "RetinaNet" in mmdet.registry.MODELS)
"""
    assert run(code) == "No module named 'mmcv._ext' True"


def test_the_finders_are_registered_once() -> None:
    code = "import sys, rednet; from rednet.mmcv_ops import register_finders; register_finders()\n"
    code += "print(sum(type(each).__name__ == '_ExtensionFinder' for each in sys.meta_path))"
    assert run(code) == "1"
