"""tools/analysis_tools/visualize_layers.py on models that nothing has trained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint

from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, with_preprocessor
from tools.analysis_tools import visualize_layers

pytest.importorskip("mmpretrain")

DEMOS = Path(__file__).resolve().parents[2] / "configs/demo"
CONFIG = str(DEMOS / "rednet26_digits.py")
SWAPPED = str(DEMOS / "resnet18-layers_digits.py")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write_image(path: Path, height: int = 40, width: int = 56) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)
    return str(path)


def write_checkpoint(folder: Path, config: str, options: dict[str, Any] | None = None) -> str:
    torch.manual_seed(0)
    model = build_model(with_preprocessor(read_config(config, options)[0]))
    path = str(folder / "weights.pth")
    save_checkpoint(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_classifier(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = [write_image(tmp_path / f"{name}.png") for name in "ab"]
    out = tmp_path / "out"
    arguments = [CONFIG, checkpoint, *images, "--layers", "layer[34]", "--points", "3,4", "31,31"]
    arguments += ["--draw", "1", "--limit", "3", "--out", str(out)]
    assert run(visualize_layers.main, arguments) == 0

    layers = [f"backbone.layer3.{index}.conv2" for index in range(4)] + ["backbone.layer4.0.conv2"]
    kinds = [f"{layer}.{kind}" for layer in layers for kind in ("maps", "kernels")]
    pictures = [f"{name}.a_0.png" for name in (*kinds, "overview.group")]
    assert names_in(out) == sorted([*pictures, "a_0.npz", "b_1.npz"])
    *written, note = capsys.readouterr().out.splitlines()
    written = [line for line in written if line.startswith(str(out))]
    assert sorted(written) == sorted(str(out / name) for name in names_in(out))
    assert note == "maps of 1 of 2 images not drawn: --draw sets how many are"

    with np.load(out / "a_0.npz") as numbers:
        assert numbers["points"].tolist() == [[3, 4], [31, 31]]
        assert numbers["backbone.layer3.0.conv2/maps"].shape == (4, 2, 2)
        kernels = numbers["backbone.layer3.0.conv2/kernels"]
        maps = numbers["backbone.layer3.0.conv2/maps"]
    assert kernels.shape == (2, 4, 7, 7)
    np.testing.assert_allclose(kernels[0].sum((1, 2)), maps[:, 0, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kernels[1].sum((1, 2)), maps[:, 1, 1], rtol=1e-4, atol=1e-6)
    with np.load(out / "b_1.npz") as numbers:  # of an image that is not drawn
        assert numbers["backbone.layer3.0.conv2/kernels"].shape == kernels.shape


def test_routing_over_a_folder_of_classes(tmp_path: Path) -> None:
    options = {"model.backbone.conv_cfg.type": "CondConv2d"}
    checkpoint = write_checkpoint(tmp_path, SWAPPED, options)
    for name in ("one/0", "one/1", "two/0"):
        write_image(tmp_path / f"images/{name}.png")
    out = tmp_path / "out"
    arguments = [SWAPPED, checkpoint, str(tmp_path / "images"), "--layers", r"layer4.1.conv2"]
    arguments += ["--out", str(out), "--cfg-options"]
    arguments += [f"{key}={value}" for key, value in options.items()]
    assert run(visualize_layers.main, arguments) == 0
    layer = "backbone.layer4.1.conv2"
    names = [
        f"{layer}.attention_0.png",
        "attention.npz",
        *(f"{n}_{i}.npz" for i, n in enumerate("010")),
    ]
    assert names_in(out) == sorted(names)
    with np.load(out / "attention.npz") as numbers:
        assert numbers[f"{layer}/classes"].tolist() == ["one", "one", "two"]
        assert numbers[f"{layer}/experts"].shape == (3, 8)
        assert ((numbers[f"{layer}/experts"] > 0) & (numbers[f"{layer}/experts"] < 1)).all()


def test_a_detector(tmp_path: Path) -> None:
    """Odd sizes are padded; a head's layers are called on several levels, or on regions."""
    pytest.importorskip("mmdet")
    swap = dict(type="Involution2d", kernel_size=3, group_channels=16)
    config = Config.fromfile(DEMOS / "faster-rcnn_rednet26_digits.py")
    config.model.rpn_head = dict(
        type="SwapConv", module=config.model.rpn_head, conv_cfg=swap, include="rpn_conv"
    )
    config.dump(tmp_path / "config.py")
    checkpoint = write_checkpoint(tmp_path, str(tmp_path / "config.py"))
    image = write_image(tmp_path / "photo.jpg", 75, 101)
    arguments = [str(tmp_path / "config.py"), checkpoint, image, "--out", str(tmp_path / "out")]
    assert run(visualize_layers.main, [*arguments, "--layers", "stem|rpn"]) == 0
    with np.load(tmp_path / "out/photo_0.npz") as numbers:
        assert numbers["points"].tolist() == [[50, 37]]
        assert numbers["backbone.stem.1/maps"].shape == (1, 48, 64)  # of 96 x 128 pixels
        levels = [name for name in numbers if name.startswith("rpn_head") and "maps" in name]
    assert levels == [f"rpn_head.rpn_conv ({index} of 4)/maps" for index in range(1, 5)]
    assert "rpn_head.rpn_conv.call2of4.maps.photo_0.png" in names_in(tmp_path / "out")


def test_a_segmentor(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    config = str(DEMOS / "fpn_rednet26_digits-seg.py")
    checkpoint = write_checkpoint(tmp_path, config)
    image = write_image(tmp_path / "photo.jpg", 75, 101)
    arguments = [config, checkpoint, image, "--layers", "layer4", "--out", str(tmp_path / "out")]
    assert run(visualize_layers.main, arguments) == 0
    assert "backbone.layer4.0.conv2.maps.photo_0.png" in names_in(tmp_path / "out")
    assert "overview.group.photo_0.png" in names_in(tmp_path / "out")


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(visualize_layers.main, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "a.png")
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(image).read_bytes()[:100])
    cases = [
        (
            [image, "--layers", "conv9"],
            "layers='conv9' matches none of the model's layers: backbone",
        ),
        ([image, "--points", "4,32"], "points: 4,32 lies outside of .*a.png.* 32 x 32 pixels"),
        ([image, "--points", "4"], "--points expects X,Y in whole pixels, got '4'"),
        ([str(tmp_path / "b.png")], "cannot read image .*b.png: no such file or directory"),
        ([str(tmp_path / "empty")], "the folder .*empty holds no image"),
        ([image, str(broken)], "cannot read image .*broken.png"),
    ]
    for arguments, message in cases:
        line = error_of([CONFIG, checkpoint, *arguments, "--out", str(out)], capsys)
        assert re.match(f"error: {message}", line), line
    assert not out.exists()


def test_a_model_without_our_layers(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.py"
    backbone = "dict(_delete_=True, type='ResNet_CIFAR', depth=18)"
    plain.write_text(f"_base_ = {CONFIG!r}\nmodel = dict(backbone={backbone})\n")
    line = error_of([str(plain), checkpoint, write_image(tmp_path / "a.png")], capsys)
    assert line.startswith("error: the model has none of the layers that can be drawn: ACBlock, ")


# What a visitor does: the sliders, then the pointer; what the page shows then is written down.
VISIT = """
<script>
function slide(id, value) {
  const slider = document.getElementById(id);
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
}
function texts() {
  const text = (id) => document.getElementById(id).textContent;
  const rows = [...document.getElementById("kernel").rows];
  return { layer: text("layer-name"), group: text("group-name"), position: text("position"),
           kernel: rows.map((row) => [...row.cells].map((cell) => Number(cell.textContent))) };
}
function visit() {
  if (!document.body.dataset.ready) { setTimeout(visit, 20); return; }
  slide("layer", 1); slide("group", 2);
  const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect();
  const place = { clientX: box.left + 3.5 / 32 * box.width,
                  clientY: box.top + 4.5 / 32 * box.height };
  canvas.dispatchEvent(new PointerEvent("pointermove", place));
  const shown = texts();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
  shown.moved = texts().position;
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  shown.colors = new Set(new Uint32Array(pixels.buffer)).size;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(shown);
  document.body.append(result);
}
visit();
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(tmp_path: Path, checkpoint: str) -> None:
    image = write_image(tmp_path / "</script>.png".replace("/", ""))
    arguments = [CONFIG, checkpoint, image, "--layers", "layer3", "--points", "3,4", "--html"]
    assert run(visualize_layers.main, [*arguments, "--out", str(tmp_path)]) == 0
    page = tmp_path / visualize_layers.PAGE
    assert "http" not in page.read_text(), "the page must need no network"
    page.write_text(page.read_text().replace("</body>", f"{VISIT}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-500:]
    shown = json.loads(found[1])
    assert shown["layer"] == "backbone.layer3.1.conv2 (2 of 4)"
    assert shown["group"] == "group 2, of 4"
    assert (shown["position"], shown["moved"]) == ("at 3, 4", "at 3, 5")
    assert shown["colors"] > 50
    (numbers,) = tmp_path.glob("*_0.npz")
    expected = np.load(numbers)["backbone.layer3.1.conv2/kernels"][0, 2]
    # Kernels are stored in 127 levels, and shown with two decimals.
    largest = np.abs(np.load(numbers)["backbone.layer3.1.conv2/kernels"]).max()
    np.testing.assert_allclose(shown["kernel"], expected, atol=0.005 + 2 * largest / 254)
