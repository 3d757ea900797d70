"""Replacing convolutions in any backbone, neck or head by other layers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmcv.cnn import build_conv_layer
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope, Registry, build_from_cfg
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rednet.checkpoint.plain_weights import report_plain_weights
from rednet.errors import ArgumentError, first_names
from rednet.layers.base import ConvLayer
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.models.following_norm import FollowingNorm, following_norms
from rednet.models.init_cfg import loads_checkpoint
from rednet.models.replaceable import check_replaceable
from rednet.models.shared_routing import share_routing as share_layers_routing
from rednet.ops.geometry import Pair, pair
from rednet.registry import CONV_LAYERS, MODELS

Patterns = str | Sequence[str]

_NAMES_SHOWN = 20


def swap_conv(
    module: nn.Module,
    conv_cfg: dict[str, Any],
    include: Patterns = "",
    exclude: Patterns | None = None,
    copy_weights: bool = False,
    take_norm: bool = False,
    share_routing: Patterns | None = None,
) -> nn.Module:
    r"""Replaces convolutions of a module, in place, by layers of the same geometry.

    A layer takes over the convolution's channels, kernel size, stride, padding, dilation, groups,
    bias and padding mode, each of which ``conv_cfg`` may override. If the kernel size or the
    dilation is overridden and the padding is not, the padding is adjusted so that the output keeps
    its size. Convolutions inside this package's layers are not replaced.

    Args:
        module: The module to change, of any library.
        conv_cfg: Config of the new layers: ``type``, and arguments that differ from the
            convolution's.
        include: Regular expression, or several, searched in the dotted names of the ``nn.Conv2d``
            modules below ``module``, such as ``r'^fpn_convs\.\d+\.conv$'``. By default all match.
        exclude: Regular expression, or several, of names to leave alone.
        copy_weights: Whether each layer loads its convolution's weights, as from a checkpoint. Use
            it for a pretrained module; for training from scratch, the layers' own initialization
            is better. Layers that do not contain the convolution keep their initialization.
        take_norm: Whether each layer also takes the place of the batch norm that is registered
            after its convolution, as in the published ACNet. Only for ``ACBlock``. A plain
            checkpoint still loads, with its norms.
        share_routing: Regular expression(s) of a block's name, such as ``r'^layers\.4\.\d'``. New
            layers whose names match with the same text share the routing of the first of them, as
            in the published CondConv. Only for ``CondConv2d``.

    Returns:
        ``module`` itself, or the new layer if ``module`` is a matching convolution.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If no convolution matches, one computes something else than its arguments
            say (a subclass of its own, hooks, computed weights), a layer cannot have a
            convolution's geometry or take a norm's place, or ``module`` is already wrapped in
            ``DistributedDataParallel``.

    Examples:
        >>> from torch import nn
        >>> from rednet.models import swap_conv
        >>> block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        >>> swap_conv(block, dict(type='Involution2d', kernel_size=7))[0].padding
        (3, 3)
    """
    _check_module(module)
    if not isinstance(conv_cfg, dict) or "type" not in conv_cfg:
        raise TypeError(f"conv_cfg must be a dict with the key 'type', got {conv_cfg!r}")
    if isinstance(conv_cfg["type"], str) and CONV_LAYERS.get(conv_cfg["type"]) is None:
        raise ArgumentError(f"conv_cfg: no layer is registered as {conv_cfg['type']!r}")
    wanted = _compiled("include", include)
    unwanted = _compiled("exclude", () if exclude is None else exclude)
    convolutions = _convolutions(module)
    matching = {
        name: convolution
        for name, convolution in convolutions.items()
        if _matches(name, wanted) and not _matches(name, unwanted)
    }
    if not matching:
        raise ArgumentError(_no_match(module, include, exclude, list(convolutions)))
    norms = following_norms(module, matching) if take_norm else {}
    layers = {
        id(convolution): _layer_like(name, convolution, conv_cfg, copy_weights, norms.get(name))
        for name, convolution in matching.items()
    }
    if share_routing is not None:
        named = {name: layers[id(convolution)] for name, convolution in matching.items()}
        share_layers_routing(named, _compiled("share_routing", share_routing))
    replace_modules(module, layers)
    for norm in norms.values():
        norm.remove()
    swapped = layers.get(id(module), module)
    keep_gradient_strides(swapped)
    report_plain_weights(swapped)
    if isinstance(swapped, BaseModule):
        swapped.init_weights = partial(_init_weights, swapped)
    return swapped


# Named as configs name it: a new-style config imports it and writes type=SwapConv.
@MODELS.register_module()
def SwapConv(
    module: dict[str, Any],
    conv_cfg: dict[str, Any],
    include: Patterns = "",
    exclude: Patterns | None = None,
    take_norm: bool = False,
    share_routing: Patterns | None = None,
    **injected: Any,
) -> nn.Module:
    r"""Builds a module from its config with other convolution layers in it; see :func:`swap_conv`.

    Args:
        module: Config of the inner module. To wrap what a base config has, write
            ``dict(_delete_=True, type='SwapConv', module={{_base_.model.neck}}, ...)``.
        conv_cfg: Config of the new layers.
        include: Regular expression(s) of the convolutions' names to replace.
        exclude: Regular expression(s) of the names to leave alone.
        take_norm: Whether the layers also take the places of the batch norms that follow.
        share_routing: Regular expression(s) of the blocks whose layers share one routing.
        **injected: Keywords that a detector adds to its parts' configs (``train_cfg``,
            ``num_classes`` ...), which go to the inner config.

    Returns:
        The inner module itself, not a wrapper: its state_dict keys are the usual ones.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If no convolution matches, or a layer cannot have a convolution's geometry.

    Examples:
        >>> neck = dict(
        ...     type='SwapConv',
        ...     module=dict(type='FPN', in_channels=[256, 512], out_channels=256, num_outs=2),
        ...     conv_cfg=dict(type='Involution2d', kernel_size=7, bias=False),
        ...     include=r'^fpn_convs\.\d+\.conv$')
    """
    if not isinstance(module, dict) or "type" not in module:
        raise TypeError(f"module must be a config dict with the key 'type', got {module!r}")
    inner = _registry(module).build({**module, **injected})
    return swap_conv(
        inner, conv_cfg, include, exclude, take_norm=take_norm, share_routing=share_routing
    )


def _registry(module: dict[str, Any]) -> Registry:
    """The registry that knows the inner module.

    With a default scope it is ``MODELS``, which follows the scope. Without one, a type is searched
    in the registry that builds the ``SwapConv``, then in the root, then in all libraries.
    """
    kind = module["type"]
    if not isinstance(kind, str) or "_scope_" in module or "." in kind or MODELS.get(kind):
        return MODELS
    if DefaultScope.get_current_instance() is not None:
        return MODELS
    building = _building_registry()
    if building is not None and building.get(kind) is not None:
        return building
    found = [child for child in MODELS.children.values() if child.get(kind) is not None]
    if len(found) > 1:
        scopes = " or ".join(repr(f"{child.scope}.{kind}") for child in found)
        raise ArgumentError(f"module type={kind!r} is in several libraries: write {scopes}")
    return found[0] if found else MODELS


def _building_registry() -> Registry | None:
    """The registry whose ``build`` is running; mmengine does not tell, but its frame has it."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not build_from_cfg.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("registry")


def _init_weights(module: BaseModule) -> None:
    """The module's own initialization, then that of its layers.

    An ``init_cfg`` for all ``Conv2d`` reaches the convolutions inside a layer too, and would fill
    those that have to start at zero. What a checkpoint has filled, in any part, stays as it is, and
    so does what was initialized before.
    """
    settled = {
        id(layer) for part in module.modules() if _is_settled(part) for layer in part.modules()
    }
    type(module).init_weights(module)
    for layer in module.modules():
        if isinstance(layer, ConvLayer) and id(layer) not in settled:
            layer.init_weights()


def _is_settled(part: nn.Module) -> bool:
    """Whether a part is initialized already or will be from a checkpoint."""
    return isinstance(part, BaseModule) and (part.is_init or loads_checkpoint(part.init_cfg))


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if any(isinstance(each, DistributedDataParallel) for each in module.modules()):
        raise ArgumentError(
            f"module: {type(module).__name__} already synchronizes the parameters that it was "
            "wrapped with; swap the convolutions before wrapping"
        )


def _convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    own = {
        id(inner)
        for layer in module.modules()
        if isinstance(layer, ConvLayer)
        for inner in layer.modules()
    }
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, nn.Conv2d) and id(each) not in own
    }


def _compiled(argument: str, patterns: Patterns) -> list[re.Pattern[str]]:
    try:
        return [
            re.compile(each) for each in ([patterns] if isinstance(patterns, str) else patterns)
        ]
    except (TypeError, re.error) as error:
        raise ArgumentError(
            f"{argument} must be a regular expression or several, got {patterns!r}: {error}"
        ) from error


def _matches(name: str, patterns: list[re.Pattern[str]]) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def _no_match(
    module: nn.Module, include: Patterns, exclude: Patterns | None, names: list[str]
) -> str:
    shown = first_names(names, _NAMES_SHOWN) or "nothing: it has no nn.Conv2d"
    return (
        f"include={include!r} with exclude={exclude!r} matches no convolution of "
        f"{type(module).__name__}; it could have matched: {shown}"
    )


def _layer_like(
    name: str,
    convolution: nn.Conv2d,
    conv_cfg: dict[str, Any],
    copy_weights: bool,
    norm: FollowingNorm | None,
) -> nn.Module:
    check_replaceable(name, convolution, copy_weights)
    geometry = dict(
        in_channels=convolution.in_channels,
        out_channels=convolution.out_channels,
        kernel_size=convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
        padding_mode=convolution.padding_mode,
    )
    if isinstance(convolution, Conv2dAdaptivePadding):
        geometry["padding"] = "adaptive"
    arguments = {**geometry, **conv_cfg}
    try:
        if "padding" not in conv_cfg and not isinstance(geometry["padding"], str):
            arguments["padding"] = _following_padding(convolution, arguments)
        layer = build_conv_layer(arguments)
    except ValueError as error:
        raise ArgumentError(f"{name or 'the module'}: {error}") from error
    weight = convolution.weight
    layer.requires_grad_(weight.requires_grad)
    if norm is not None:
        norm.give_to(layer)
    if copy_weights:
        _copy_weights(convolution, layer, norm)
    return layer.to(weight.device, weight.dtype).train(convolution.training)


def _copy_weights(convolution: nn.Conv2d, layer: nn.Module, norm: FollowingNorm | None) -> None:
    # Not its state_dict, which lacks what is computed from others, as weight_norm does.
    state = {"weight": convolution.weight.detach()}
    if convolution.bias is not None:
        state["bias"] = convolution.bias.detach()
    if not isinstance(layer, ConvLayer):
        return
    prefix = "convolution."
    given = {prefix + key: value for key, value in state.items()}
    if norm is not None:
        given |= {f"{norm.name}.{key}": value for key, value in norm.module.state_dict().items()}
    if layer.expand_plain_state(given, prefix) is not None:
        layer.replace_plain_entries(given, prefix)
        layer.load_state_dict({key[len(prefix) :]: value for key, value in given.items()})


def _following_padding(convolution: nn.Conv2d, arguments: dict[str, Any]) -> Pair:
    """The padding that keeps the output's size under the new kernel size and dilation."""
    kernel_size = pair("kernel_size", arguments["kernel_size"], minimum=1)
    dilation = pair("dilation", arguments["dilation"], minimum=1)
    paddings = []
    for side in (0, 1):
        growth = dilation[side] * (kernel_size[side] - 1) - convolution.dilation[side] * (
            convolution.kernel_size[side] - 1
        )
        padding = int(convolution.padding[side]) + growth // 2
        if growth % 2 or padding < 0:
            raise ArgumentError(
                f"no padding keeps the output's size with kernel_size={kernel_size} and "
                f"dilation={dilation} in place of {convolution.kernel_size} and "
                f"{convolution.dilation}; conv_cfg must give the padding"
            )
        paddings.append(padding)
    return paddings[0], paddings[1]


def replace_modules(module: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Replaces submodules, given by their ids; one that is shared stays shared."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips duplicates
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
