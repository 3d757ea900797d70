"""The custom operator of ONNX Runtime; what runs it needs a library that is not built here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from rednet.cli.command import run
from rednet.deploy.onnx import compare_onnx, export_onnx, open_session, random_images
from rednet.errors import UserError
from rednet.layers import Involution2d
from rednet.models import RedNet
from tests.layers.cases import randomized
from tools.model_converters import build_onnx_operator

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

VARIABLE = "REDNET_ONNX_OPERATOR"
WINDOW = dict(stride=[2, 1], padding=[3, 0], dilation=[1, 2])


@pytest.fixture
def library() -> str:
    if VARIABLE not in os.environ:
        pytest.skip(
            f"{VARIABLE} names no library; build one: python "
            "tools/model_converters/build_onnx_operator.py HEADERS --out librednet.so"
        )
    return os.environ[VARIABLE]


def _layer(kernel_size: int = 7, **window: object) -> nn.Module:
    return randomized(Involution2d(32, 32, kernel_size, **window))


def _export(layer: nn.Module, path: Path, channels: int = 32) -> None:
    export_onnx(layer, path, random_images((2, channels, 17, 12)), custom_operator=True)


def test_the_graph_has_one_node_with_the_window(tmp_path: Path) -> None:
    _export(_layer(3, **WINDOW), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    [node] = [node for node in graph.node if node.domain == "rednet"]
    assert node.op_type == "Involution2d"
    assert {each.name: list(each.ints) for each in node.attribute} == WINDOW


def test_nothing_is_written_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _export(_layer(), tmp_path / "m.onnx")
    assert capfd.readouterr().err == ""


def test_the_next_graph_is_of_standard_operators(tmp_path: Path) -> None:
    _export(_layer(), tmp_path / "custom.onnx")
    export_onnx(_layer(), tmp_path / "m.onnx", random_images((2, 32, 17, 12)))
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} == {""}


def test_dynamo_does_not_write_it(tmp_path: Path) -> None:
    images = random_images((2, 32, 17, 12))
    with pytest.raises(UserError, match="dynamo exporter does not write the custom operator"):
        export_onnx(_layer(), tmp_path / "m.onnx", images, exporter="dynamo", custom_operator=True)


@pytest.mark.parametrize(
    ("kernel_size", "window"),
    [
        (7, dict(padding=3)),
        (3, dict(padding=1, stride=2)),
        (5, dict(padding=(4, 1), dilation=2)),
        (3, dict(stride=(1, 2), padding=1, group_channels=4)),
        (4, dict(group_channels=32)),
    ],
)
def test_it_computes_what_the_layer_does_for_any_image(
    kernel_size: int, window: dict, library: str, tmp_path: Path
) -> None:
    layer = _layer(kernel_size, **window)
    _export(layer, tmp_path / "m.onnx")
    for shape in ((1, 32, 17, 12), (3, 32, 40, 33)):
        assert compare_onnx(layer, tmp_path / "m.onnx", random_images(shape), library).agrees


def test_whole_network(library: str, tmp_path: Path) -> None:
    model = randomized(RedNet(26, stem_channels=32, base_channels=16)).eval()
    _export(model, tmp_path / "m.onnx", channels=3)
    images = random_images((2, 3, 64, 41))
    assert compare_onnx(model, tmp_path / "m.onnx", images, library).agrees
    sessions = [open_session(tmp_path / "m.onnx", library, threads) for threads in (1, 2)]
    first, second = (session.run(None, {"image": images.numpy()}) for session in sessions)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_library_refuses_tensors_that_do_not_fit(library: str, tmp_path: Path) -> None:
    float32 = onnx.TensorProto.FLOAT
    describe = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Involution2d", ["x", "w"], ["y"], domain="rednet", **WINDOW)
    tensors = [describe("x", float32, [None] * 4), describe("w", float32, [None] * 6)]
    graph = onnx.helper.make_graph([node], "g", tensors, [describe("y", float32, [None] * 4)])
    versions = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("rednet", 1)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx", library)
    image = np.ones((1, 6, 5, 5), np.float32)
    fitting = np.ones((1, 3, 3, 2, 5, 3), np.float32)
    assert session.run(None, {"x": image, "w": fitting})[0].shape == (1, 6, 5, 3)
    for weight in (fitting[:, :, :, :, :4], np.ones((1, 4, 3, 2, 5, 3), np.float32)):
        with pytest.raises(Exception, match="rednet: "):
            session.run(None, {"x": image, "w": weight})


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the library .*none.so"):
        open_session(tmp_path / "m.onnx", tmp_path / "none.so")


def _build(headers: Path) -> int:
    return run(build_onnx_operator.main, [str(headers), "--out", str(headers / "new" / "lib.so")])


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("false", "error: false cannot build the library: exit code 1"),
        ("no-such-compiler", "error: there is no C++ compiler no-such-compiler"),
    ],
)
def test_a_library_that_cannot_be_built(
    compiler: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert _build(tmp_path) == 2
    assert "there is no onnxruntime_c_api.h in" in capsys.readouterr().err
    (tmp_path / "onnxruntime_c_api.h").touch()
    assert _build(tmp_path) == 2
    assert message in capsys.readouterr().err
