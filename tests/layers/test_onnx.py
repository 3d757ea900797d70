"""Export of the layers whose kernels are constant after training."""

from __future__ import annotations

import inspect
import io

import numpy as np
import pytest
import torch
from torch import nn

from tests.layers.cases import build, randomised

onnxruntime = pytest.importorskip("onnxruntime")

# The exporter that does not need onnxscript; older versions of PyTorch have no other.
EXPORTER = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["ACBlock", "ConvAWS2d", "SAConv2d", "SPConv2d"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("deployed", [False, True])
def test_onnxruntime_computes_the_same(name: str, stride: int, deployed: bool) -> None:
    layer: nn.Module = randomised(build(name, 16, 16, 3, stride=stride, padding=1)).eval()
    image = torch.randn(2, 16, 9, 12)
    expected = layer(image).detach().numpy()
    if deployed:
        layer = layer.switch_to_deploy()
    file = io.BytesIO()
    torch.onnx.export(layer, (image,), file, opset_version=17, input_names=["image"], **EXPORTER)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"image": image.numpy()})
    assert np.linalg.norm(output - expected) <= 1e-5 * np.linalg.norm(expected)
