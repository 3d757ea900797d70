from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from rednet.checkpoint.published import convert
from rednet.checkpoint.reading import read_state_dict
from rednet.cli.model import build_with_stem
from rednet.errors import UserError
from tests.checkpoint.published_shapes import backbone

CONFIG = Path(__file__).resolve().parents[2] / "configs/rednet26_imagenet.py"


def paddle_file(path: Path, protocol: int) -> dict[str, Tensor]:
    """Writes a RedNet-26 as paddle.save does; returns its entries by PyTorch's names."""
    names = {"running_mean": "_mean", "running_var": "_variance"}
    expected, content = {}, {"StructuredToParameterName@@": {"fc.weight": "linear_0.w_0"}}
    shapes = backbone(26, 3) | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        parent, _, leaf = name.rpartition(".")
        value = torch.rand(1).expand(shape) if name != "fc.weight" else torch.rand(shape)
        expected[name] = value
        array = value.numpy()
        paddles = f"{parent}.{names.get(leaf, leaf)}"
        content[paddles] = array.T.copy() if name == "fc.weight" else array.copy()
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return expected


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_of_paddle_are_read_without_it(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "RedNet26_pretrained.pdparams"
    expected = paddle_file(path, protocol)
    state = read_state_dict(path)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    result = convert(state, partial(build_with_stem, Config.fromfile(CONFIG)))
    assert not result.refused and not result.missing
    assert torch.equal(result.state_dict["head.fc.weight"], expected["fc.weight"])


class Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": Harmful()}), "holds builtins.print, which could run code"),
        (b"no pickle", "is not a file of PaddlePaddle's weights"),
        (pickle.dumps([1]), "holds no weights by name, but list"),
        (pickle.dumps({"a": np.array(["text"])}), "must hold numbers"),
        (pickle.dumps({"a": 1}), "holds no state_dict"),
    ],
)
def test_a_paddle_file_runs_no_code(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pdparams"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out
