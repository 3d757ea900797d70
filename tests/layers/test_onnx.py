"""Export to ONNX: the graph of a layer runs elsewhere, for any batch and image size."""

from __future__ import annotations

import inspect
import io

import pytest
import torch
from torch import nn

from rednet.layers.base import registered_layers
from tests.layers.cases import build, randomized
from tests.tolerances import assert_close

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# The exporter that does not need onnxscript; older versions of PyTorch have no other.
EXPORTER = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
# Standardized kernels are a layer_norm without a scale, which torch 2.1 exports wrongly.
LAYER_NORM_LACKS_SCALE = torch.__version__.startswith("2.1.")
CASES = [
    (dict(padding=1), False),
    (dict(padding=0, stride=2), False),
    (dict(padding=1, padding_mode="reflect"), False),
    (dict(padding=1, stride=2), True),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", registered_layers())
@pytest.mark.parametrize(("geometry", "deployed"), CASES, ids=str)
def test_onnxruntime_computes_the_same(name: str, geometry: dict, deployed: bool) -> None:
    if LAYER_NORM_LACKS_SCALE and name in ("ConvAWS2d", "SAConv2d") and not deployed:
        pytest.skip("this torch exports no layer_norm without a scale; switch_to_deploy first")
    layer: nn.Module = randomized(build(name, 16, 16, 3, **geometry)).eval()
    _check(layer.switch_to_deploy() if deployed else layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", registered_layers())
def test_a_layer_leaves_its_successor_any_size(name: str) -> None:
    layers = [randomized(build(name, 16, 16, 3, padding=1)) for _ in range(2)]
    _check(nn.Sequential(*(layer.switch_to_deploy() for layer in layers)).eval())


def _check(exported: nn.Module) -> None:
    """onnxruntime computes the same for other batches and sizes than the recorded ones."""
    file, free = io.BytesIO(), {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        exported,
        (torch.randn(2, 16, 9, 12),),
        file,
        opset_version=17,
        input_names=["image"],
        output_names=["output"],
        dynamic_axes={"image": free, "output": free},
        **EXPORTER,
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in ((2, 9, 12), (3, 12, 9), (1, 14, 15)):
        image = torch.randn(size[0], 16, *size[1:])
        (output,) = session.run(None, {"image": image.numpy()})
        assert_close(torch.from_numpy(output), exported(image), 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_deformable_layer_says_that_it_cannot_be_exported() -> None:
    pytest.importorskip("mmcv._ext")
    layer = build("SAConv2d", 16, 16, 3, padding=1, use_deform=True).eval()
    with pytest.raises(RuntimeError, match="use_deform=True cannot be exported to ONNX"):
        torch.onnx.export(layer, (torch.randn(2, 16, 9, 12),), io.BytesIO(), **EXPORTER)
