"""Export of a model to ONNX, and the comparison of ONNX Runtime's outputs with PyTorch's.

The standard operators that stand for involution are in :mod:`rednet.ops.decomposition`, the custom
operator in :mod:`rednet.deploy.onnx_operator`.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rednet.deploy.fusing import relative_error
from rednet.deploy.onnx_operator import recording
from rednet.errors import MissingDependencyError, UserError

OPSET = 17  # unless another is asked for
# The oldest that the dynamo exporter writes by itself.
DYNAMO_OPSET = 18
EXPORTERS = ("torchscript", "dynamo")
# Largest error of an output, unless PyTorch's own rounding is of that size.
TOLERANCE = 1e-5
# A graph adds in another order than PyTorch: its error is a few times PyTorch's at most.
ROUNDING_FACTOR = 10.0

# Before torch 2.5 torch.onnx.export had one exporter and no argument to choose it. A model that was
# exported by dynamo before torch 2.7 would still hold our own operator (rednet.ops.tracing).
_HAS_CHOICE = "dynamo" in inspect.signature(torch.onnx.export).parameters
_HAS_DYNAMO = _HAS_CHOICE and hasattr(torch.compiler, "is_exporting")


@dataclass(frozen=True)
class Graph:
    """What an ONNX file holds.

    Attributes:
        opset: Version of the standard operators.
        nodes: Number of operators.
        inputs: Name and shape of each input.
        outputs: Name and shape of each output.
    """

    opset: int
    nodes: int
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    exporter: str = "torchscript",
    dynamic_size: bool = True,
    opset: int | None = None,
    custom_operator: bool = False,
) -> Graph:
    """Writes a model as an ONNX file, with a free batch size.

    Args:
        model: Maps images (N, C, H, W) to a tensor or a sequence of tensors; it is left in eval
            mode.
        path: The file to write.
        images: Images (N, C, H, W) that the model is recorded with; N is at least 2, since an
            exporter treats a batch size of one as fixed.
        exporter: ``'torchscript'`` records the operators that run; ``'dynamo'`` translates the
            graph of torch.export, which takes much longer and gives a smaller graph.
        dynamic_size: Whether height and width are free too.
        opset: Version of the standard operators. None for 17, which ``'dynamo'`` writes where
            PyTorch can convert its graph of version 18; it cannot write older ones.
        custom_operator: Whether involution is one operator, ``rednet::Involution2d``, which ONNX
            Runtime runs with the library of :mod:`rednet.deploy.onnx_operator`. Else all operators
            are standard ones.

    Returns:
        A description of the file.

    Raises:
        UserError: If the model cannot be exported, or not in this version.
        MissingDependencyError: If a package is missing.
    """
    _require("onnx")
    if custom_operator and exporter != "torchscript":
        raise UserError(f"the {exporter} exporter does not write the custom operator")
    outputs = outputs_of(model, images)
    names = [f"output{index}" for index in range(len(outputs))] if len(outputs) > 1 else ["output"]
    if exporter == "dynamo":
        arguments = _dynamo_arguments(dynamic_size, opset)
    else:
        arguments = _torchscript_arguments(dict(zip(names, outputs, strict=True)), dynamic_size)
    arguments.update(opset_version=opset or OPSET, input_names=["image"], output_names=names)
    if custom_operator:
        arguments.update(custom_opsets={recording.DOMAIN: recording.VERSION})
    recorded = recording.recorded_as_one_operator() if custom_operator else nullcontext()
    with torch.no_grad(), recorded, warnings.catch_warnings():
        # Such as: what a check of shapes has found is recorded as a constant.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(model, (images,), str(path), **arguments)
        # The base of all that both exporters raise, and of an unknown opset.
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the {exporter} exporter cannot export this {type(model).__name__}: "
                f"{_first_line(_root(error))}"
            ) from error
    return _inspect(path, {recording.DOMAIN} if custom_operator else set())


@dataclass(frozen=True)
class Comparison:
    """How far outputs are from those of the same model in float64.

    Each is the largest ``||output - expected|| / ||expected||`` of all outputs.

    Attributes:
        exported: Error of ONNX Runtime's outputs.
        original: Error of PyTorch's outputs in the model's dtype.
    """

    exported: float
    original: float

    @property
    def allowed(self) -> float:
        """The largest error of a right graph: 1e-5, or what rounding explains if that is more."""
        return max(TOLERANCE, ROUNDING_FACTOR * self.original)

    @property
    def agrees(self) -> bool:
        """Whether the graph computes what the model does."""
        return self.exported <= self.allowed


def compare_onnx(
    model: nn.Module, path: str | Path, images: Tensor, library: str | Path | None = None
) -> Comparison:
    """Compares ONNX Runtime's outputs on the CPU, and PyTorch's, with the model's in float64.

    Args:
        model: The model that was exported.
        path: The ONNX file.
        images: Images (N, C, H, W) such as the model was trained with: others can drive its
            activations to where rounding is all that is compared.
        library: The library of the custom operator, where the file has it.

    Raises:
        UserError: If the library or the file cannot be loaded, the file cannot run on such images,
            or the model's outputs are not finite.
        MissingDependencyError: If onnxruntime is missing.
    """
    exported = _runtime_outputs(path, images, library)
    original = outputs_of(model, images)
    expected = outputs_of(copy.deepcopy(model).double(), images.double())
    if not all(tensor.isfinite().all() for tensor in original):
        raise UserError(
            f"the outputs of {type(model).__name__} on images of {_text(images.shape)} are not "
            "finite, so that no graph can be compared with it"
        )
    return Comparison(_largest_error(exported, expected), _largest_error(original, expected))


def open_session(path: str | Path, library: str | Path | None = None, threads: int = 0) -> Any:
    """An ONNX file, ready to run in ONNX Runtime on the CPU.

    Args:
        path: The ONNX file.
        library: The library of the custom operator, where the file has it.
        threads: Number of threads; 0 for ONNX Runtime's choice.

    Raises:
        UserError: If the library or the file cannot be loaded.
        MissingDependencyError: If onnxruntime is missing.
    """
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too
    options.intra_op_num_threads = threads
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
    except Exception as error:  # its own exceptions have no other base
        raise UserError(
            f"ONNX Runtime cannot load the library {library}: {_first_line(error)}"
        ) from error
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _runtime_outputs(path: str | Path, images: Tensor, library: str | Path | None) -> list[Tensor]:
    session = open_session(path, library)
    try:
        outputs = session.run(None, {"image": images.numpy()})
    except Exception as error:
        raise UserError(
            f"ONNX Runtime fails on images of {_text(images.shape)}: {_first_line(error)}"
        ) from error
    return [torch.from_numpy(array) for array in outputs]


def _largest_error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(map(relative_error, outputs, expected))


def random_images(
    shape: Sequence[int], mean: Tensor | float = 127.5, std: Tensor | float = 58.0
) -> Tensor:
    """Random smooth images of 8 bits, normalized; the same at every call.

    Their neighboring pixels are alike, as a photograph's are. White noise excites a trained network
    as no image does.

    Args:
        shape: (N, C, H, W).
        mean: What is subtracted from the pixels, of C channels or all.
        std: What they are divided by then.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    coarse = torch.rand((batch, channels, height // 8 + 2, width // 8 + 2), generator=generator)
    pixels = nn.functional.interpolate(255 * coarse, (height, width), mode="bilinear").round()
    return (pixels - mean) / std


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The model's outputs in eval mode.

    Raises:
        UserError: If they are not tensors.
    """
    output = model.eval()(images)
    outputs = [output] if isinstance(output, Tensor) else output
    if not isinstance(outputs, Sequence) or not all(isinstance(each, Tensor) for each in outputs):
        raise UserError(
            f"{type(model).__name__} does not map images to tensors but to "
            f"{type(output).__name__}, which cannot be exported"
        )
    return list(outputs)


def _torchscript_arguments(outputs: Mapping[str, Tensor], dynamic_size: bool) -> dict[str, Any]:
    axes = {"image": _free_sizes(dynamic_size)}
    for name, tensor in outputs.items():
        axes[name] = {0: "batch"}
        if dynamic_size and tensor.dim() == 4:
            axes[name].update({2: f"{name}_height", 3: f"{name}_width"})
    return dict(dynamic_axes=axes, **(dict(dynamo=False) if _HAS_CHOICE else {}))


def _dynamo_arguments(dynamic_size: bool, opset: int | None) -> dict[str, Any]:
    if not _HAS_DYNAMO:
        raise UserError(
            f"the dynamo exporter needs torch 2.7 or newer, and this is {torch.__version__}"
        )
    if opset is not None and opset < DYNAMO_OPSET:
        raise UserError(
            f"the dynamo exporter writes opset {DYNAMO_OPSET} and newer, and opset {opset} is "
            "asked for, which the torchscript exporter writes"
        )
    _require("onnxscript")
    return dict(
        dynamo=True,
        dynamic_shapes=(_free_sizes(dynamic_size),),
        external_data=False,
        verbose=False,
    )


def _free_sizes(dynamic_size: bool) -> dict[int, str]:
    return {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}


def _inspect(path: str | Path, domains: Set[str]) -> Graph:
    onnx = _require("onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"} - domains
    if foreign:
        raise UserError(f"the graph has operators of {sorted(foreign)}, outside of the standard")
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return Graph(
        opset, len(model.graph.node), _shapes(model.graph.input), _shapes(model.graph.output)
    )


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(
            each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim
        )
        for value in values
    }


def _require(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"export to ONNX needs {name}, which is not installed: pip install {name}"
        ) from error


def _root(error: BaseException) -> BaseException:
    """What an error was raised from: the dynamo exporter wraps it in general advice."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
