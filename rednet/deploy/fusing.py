"""Fusing a trained model for inference: what is constant is merged into convolutions."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Conv2d as WrappedConv2d
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.errors import ArgumentError, DifferentOutputError
from rednet.layers.acblock import ACBlock
from rednet.layers.base import ConvLayer
from rednet.layers.folding import fold, is_foldable, scale_and_shift
from rednet.models.swap_conv import replace_modules
from rednet.registry import MODELS

# Largest ||fused - original|| / ||original||, by the dtype of the weights.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 3e-2,
    torch.bfloat16: 2e-1,
}
IMAGE_SIDE = 64

Fusion = tuple[str, nn.Module, nn.Module]


def switch_to_deploy(model: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> nn.Module:
    """Fuses, in place, what is constant after training, and checks that the outputs agree.

    A layer of this package merges what it can: an ``ACBlock`` and a ``ConvAWS2d`` become plain
    ``nn.Conv2d``, an ``SPConv2d`` loses its norms. Then each batch norm that
    directly follows a convolution, in a ``ConvModule`` or as the next child of the same module, is
    folded into it and becomes an ``nn.Identity``. A convolution or a norm that occurs several times
    in the model is left alone. The model is left in eval mode.

    Every fused layer is compared with what it was, in float64 on a random image. So is the model,
    as it is, by ``run``.

    Args:
        model: A trained model, of any library.
        run: Calls the model and returns the tensor, or the collection of tensors, that fusing must
            not change. By default it calls ``extract_feat``, where the model has one, and else the
            model itself, with two random images of 64 x 64 pixels.

    Returns:
        The model, or what takes its place where it is itself a layer that becomes another one.

    Raises:
        ArgumentError: If the model does not run on random images, or its output is not finite.
        DifferentOutputError: If an output has changed. The message names the layer that changed
            most. The model is then unusable.

    Examples:
        >>> from torch import nn
        >>> from rednet.layers import ACBlock
        >>> from rednet.deploy import switch_to_deploy
        >>> model = nn.Sequential(ACBlock(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        >>> sorted(switch_to_deploy(model).state_dict())
        ['0.bias', '0.weight']
    """
    model.eval()
    run = run or _random_run(model)
    with torch.no_grad():
        expected = _tensors(run(model))
        if not all(tensor.isfinite().all() for tensor in expected):
            raise ArgumentError("the model's output is not finite even before it is fused")
        place = nn.ModuleList([model])
        errors = {name: _fusion_error(original, fused) for name, original, fused in _fusions(place)}
        model = place[0]
        changes = zip(_tensors(run(model)), expected, strict=True)
        change = max(relative_error(actual, tensor) for actual, tensor in changes)
    _check(errors, change, TOLERANCES[expected[0].dtype])
    return model


@MODELS.register_module(name="Deployed")
def build_deployed(module: dict[str, Any], **injected: Any) -> nn.Module:
    """Builds a module in the form that :func:`switch_to_deploy` gives it, to load its checkpoint.

    Args:
        module: Config of the module as it was trained.
        **injected: Keywords that are added to a model's config (``data_preprocessor`` ...), which
            go to the inner config.

    Returns:
        The module itself, fused and in eval mode, with meaningless weights until a checkpoint is
        loaded.

    Raises:
        TypeError: If ``module`` is not a config.

    Examples:
        >>> model = dict(type='Deployed', module=dict(type='RedNet', depth=26))
    """
    if not isinstance(module, Mapping) or "type" not in module:
        raise TypeError(f"module must be a config dict with the key 'type', got {module!r}")
    model = MODELS.build({**module, **injected})
    model.eval()  # some backbones return nothing from here
    place = nn.ModuleList([model])
    deque(_fusions(place), maxlen=0)
    return place[0]


# ---- what is fused


def _fusions(place: nn.ModuleList) -> Iterator[Fusion]:
    """Fuses the one module in ``place``, which may be replaced there, step by step.

    Yields:
        For each step, the name of the fused module, a copy of the original and the result.
    """
    yield from _layer_fusions(place)
    yield from _norm_fusions(place[0])


def _layer_fusions(place: nn.ModuleList) -> Iterator[Fusion]:
    for name, layer in list(place[0].named_modules()):
        if _merges(layer):
            original = copy.deepcopy(layer)
            fused = layer.switch_to_deploy()
            if isinstance(fused, ACBlock):
                fused = fused.plain()
            replace_modules(place, {id(layer): fused})
            yield name, original, fused


def _merges(layer: nn.Module) -> bool:
    """Whether the layer has something to merge, that is, overrides ``switch_to_deploy``."""
    return (
        isinstance(layer, ConvLayer)
        and type(layer).switch_to_deploy is not ConvLayer.switch_to_deploy
    )


def _norm_fusions(model: nn.Module) -> Iterator[Fusion]:
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for prefix, parent in list(model.named_modules()):
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for (_, first), (name, norm) in zip(children, children[1:], strict=False):
            convolution = _convolution(first)
            if convolution is None or not _foldable(parent, convolution, norm):
                continue
            if places[id(first)] > 1 or places[id(norm)] > 1:
                continue
            original = nn.Sequential(copy.deepcopy(convolution), norm)
            fold(convolution, *scale_and_shift(norm))
            setattr(parent, name, nn.Identity())
            if isinstance(parent, ConvModule):
                parent.turn_on_efficient_conv_bn_eval(False)
            yield f"{prefix}.{name}" if prefix else name, original, convolution


def _convolution(module: nn.Module) -> nn.Conv2d | None:
    """The plain convolution that the module is, or None."""
    # A subclass may do something else to its weight; so may a hook, such as a spectral norm's.
    if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, WrappedConv2d):
        return None if module._forward_pre_hooks else module
    return None


def _foldable(parent: nn.Module, convolution: nn.Conv2d, norm: nn.Module) -> bool:
    if not isinstance(norm, _BatchNorm) or not is_foldable(norm):
        return False
    if isinstance(parent, ConvModule):
        return parent.order.index("norm") == parent.order.index("conv") + 1
    return norm.num_features == convolution.out_channels


# ---- whether the outputs agree


def _random_run(model: nn.Module) -> Callable[[nn.Module], Any]:
    """Extracts the features of random images; tries it once."""
    layers = (each for each in model.modules() if isinstance(each, (nn.Conv2d, ConvLayer)))
    first = next(layers, None)
    if first is None:
        raise ArgumentError(f"there is nothing to fuse: {type(model).__name__} has no convolution")
    images = _random_image(first, IMAGE_SIDE, IMAGE_SIDE)

    def run(model: nn.Module) -> Any:
        return getattr(model, "extract_feat", model)(images)

    try:
        with torch.no_grad():
            run(model)
    except Exception as error:
        raise ArgumentError(
            f"{type(model).__name__} does not run on random images of shape "
            f"{tuple(images.shape)}; pass run=lambda model: model(...): {error}"
        ) from error
    return run


def _random_image(convolution: nn.Conv2d | ConvLayer, height: int, width: int) -> Tensor:
    weight = next(convolution.parameters())
    shape = (2, convolution.in_channels, height, width)
    return torch.randn(shape, device=weight.device, dtype=weight.dtype)


def _fusion_error(original: nn.Module, fused: nn.Module) -> float:
    """How much the output changes, in float64, so that only the new weights' rounding is left."""
    convolution: Any = original[0] if isinstance(original, nn.Sequential) else original
    images = _random_image(convolution, *_sides(convolution)).double()
    outputs = (copy.deepcopy(each).double()(images) for each in (fused, original))
    return relative_error(*outputs)


def _sides(convolution: nn.Conv2d | ConvLayer) -> list[int]:
    """A height and a width that the kernel and every padding mode can work with."""
    return [
        dilation * (size - 1) + 1 + 2 * stride
        for size, stride, dilation in zip(
            convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
        )
    ]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``||actual - expected|| / ||expected||``, infinite for tensors of different shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = (actual.double() - expected.double()).norm().item()
    norm = expected.double().norm().item()
    return difference / norm if norm else difference


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested collection."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if not isinstance(output, Sequence) or isinstance(output, str):
        raise TypeError(f"run must return tensors, got {type(output).__name__}")
    return [tensor for each in output for tensor in _tensors(each)]


def _check(errors: Mapping[str, float], change: float, tolerance: float) -> None:
    worst = max(errors, key=errors.__getitem__, default="")
    if errors and not errors[worst] <= tolerance:
        raise DifferentOutputError(
            f"{worst or 'the layer'} computes something else after it was fused: its output is off "
            f"by {errors[worst]:.2g} of its norm, allowed are {tolerance:.2g}"
        )
    if not change <= tolerance:
        raise DifferentOutputError(
            f"the fused model's output is off by {change:.2g} of its norm, allowed are "
            f"{tolerance:.2g}, though each fused layer by itself agrees (the worst, {worst}, is "
            f"off by {errors.get(worst, 0.0):.2g}): some norm does not follow the convolution that "
            "is registered before it"
        )
