from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from rednet.cli.command import run
from tests.forked_programs import run_tool
from tests.layers.cases import randomized
from tools.model_converters import switch_to_deploy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
custom_imports = dict(imports=["rednet"])
model = dict(
    type="SwapConv",
    module=dict(
        type="RedNet", depth=26, stem_channels=32, base_channels=16,
        num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,),
    ),
    conv_cfg=dict(type="{layer}"),
    include=r"stem\\.4\\.conv",
)
"""


def test_the_files_give_the_trained_models_outputs(tmp_path: Path) -> None:
    source = tmp_path / "config.py"
    source.write_text(CONFIG.format(layer="ACBlock"))
    trained = randomized(MODELS.build(Config.fromfile(source).model)).eval()
    meta = {"dataset_meta": {"classes": ["a", "b"]}, "epoch": 3}
    torch.save({"state_dict": trained.state_dict(), "meta": meta}, tmp_path / "trained.pth")
    prefix = tmp_path / "new" / "fused"
    tool = "model_converters/switch_to_deploy.py"
    done = run_tool(tool, source, tmp_path / "trained.pth", prefix, "--shape", "32", "48")
    assert done.returncode == 0, done.stderr
    assert "parameters, 12 batch norms\n-> " in done.stdout and ", 2 batch norms" in done.stdout

    config = Config.fromfile(f"{prefix}.py")
    assert config.load_from == f"{prefix}.pth"
    checkpoint = torch.load(config.load_from, weights_only=True)
    assert checkpoint["meta"] == {"dataset_meta": {"classes": ["a", "b"]}}
    fused = MODELS.build(config.model)
    fused.load_state_dict(checkpoint["state_dict"], strict=True)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(fused(image)[0], trained(image)[0], rtol=1e-3, atol=1e-3)


class NormFirst(BaseModule):
    """A norm that does not follow the convolution that is registered before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(self.norm(image))


class Unsaved(BaseModule):
    """A factor that is not in the checkpoint."""

    built = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        Unsaved.built += 1
        self.factor = Unsaved.built

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * self.norm(self.conv(image))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NormFirst, "some norm does not follow the convolution that is registered before it"),
        (Unsaved, "fused.py would build differs from the fused model, so nothing is written: Tens"),
    ],
)
def test_a_deployed_model_that_differs_is_not_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: type[nn.Module],
    message: str,
) -> None:
    monkeypatch.setitem(MODELS.module_dict, "Different", model)
    source = tmp_path / "config.py"
    source.write_text('model = dict(type="Different")')
    torch.save(randomized(model()).state_dict(), tmp_path / "trained.pth")
    arguments = [source, tmp_path / "trained.pth", tmp_path / "fused", "--shape", "8"]
    assert run(switch_to_deploy.main, [str(each) for each in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} == {"config.py", "trained.pth"}


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "config.py"
    source.write_text(CONFIG.format(layer="ConvAWS2d"))
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "other.pth")
    for prefix, message in (
        ("fused", "other.pth does not fit the config"),
        ("config", "config.py would replace a file that is read"),
        ("other.pth/fused", "other.pth is a file, not a directory"),
    ):
        arguments = [source, tmp_path / "other.pth", tmp_path / prefix]
        assert run(switch_to_deploy.main, [str(each) for each in arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (tmp_path / "fused.pth").exists()
