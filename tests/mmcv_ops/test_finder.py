"""Who gives ``mmcv._ext``, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path | None = None) -> str:
    """The last line that a program prints, of its error if it fails."""
    folders = [str(each) for each in (path, ROOT) if each]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
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
def test_what_is_not_served_raises_at_its_use() -> None:
    code = "import rednet; from mmcv.ops import box_iou_rotated; import torch\n"
    line = run(f"{code}box_iou_rotated(torch.rand(2, 5), torch.rand(2, 5))")
    assert "box_iou_rotated needs compiled mmcv" in line
    assert "pip uninstall -y mmcv-lite" in line and "mmcv==" in line


def _stand_in(folder: Path, text: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(text)
    return folder


@needs_lite
def test_no_torchvision(tmp_path: Path) -> None:
    path = _stand_in(tmp_path, "raise ImportError('No module named torchvision')")
    line = run("import rednet, mmcv.ops", path)
    assert "pip install torchvision" in line and "MissingDependencyError" in line


@needs_lite
def test_a_torchvision_that_does_not_fit_torch(tmp_path: Path) -> None:
    path = _stand_in(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    line = run("import rednet, mmcv.ops", path)
    assert "torchvision does not fit torch" in line and "torchvision::nms" in line


def test_the_finder_is_registered_once() -> None:
    code = "import sys, rednet; from rednet.mmcv_ops import register_finder; register_finder()\n"
    code += "print(sum(type(each).__name__ == '_ExtensionFinder' for each in sys.meta_path))"
    assert run(code) == "1"
