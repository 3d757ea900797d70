"""The batch norm after a convolution, whose place a layer with norms of its own takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.errors import ArgumentError
from rednet.layers.acblock import ACBlock
from rednet.layers.base import ConvLayer


class FollowingNorm(NamedTuple):
    """The batch norm that is registered after a convolution.

    Attributes:
        parent: The module that has both.
        name: The norm's name in it.
        module: The norm.
        convolution: Name of the convolution, for messages.
    """

    parent: nn.Module
    name: str
    module: _BatchNorm
    convolution: str

    def give_to(self, layer: nn.Module) -> None:
        """Lets a layer take the norm's place.

        Raises:
            ArgumentError: If the layer cannot.
        """
        if not isinstance(layer, ACBlock):
            raise ArgumentError(
                f"{self.convolution}: take_norm=True needs a layer whose norms can take the place "
                f"of the one that follows, which is ACBlock, got {type(layer).__name__}"
            )
        layer.take_norm(self.module)
        layer.taken_norm = self.name

    def remove(self) -> None:
        """Puts an identity where the norm was; the parent's plain checkpoints load from then on."""
        setattr(self.parent, self.name, nn.Identity())
        hooks = self.parent._load_state_dict_pre_hooks.values()
        if not any(getattr(hook, "hook", None) is _expand_with_norms for hook in hooks):
            self.parent._register_load_state_dict_pre_hook(_expand_with_norms, with_module=True)


def following_norms(
    module: nn.Module, convolutions: Mapping[str, nn.Module]
) -> dict[str, FollowingNorm]:
    """Finds the batch norm that is registered after each convolution.

    Args:
        module: The module that contains them.
        convolutions: The convolutions by their dotted names in it.

    Raises:
        ArgumentError: If something else follows a convolution.
    """
    return {name: _following_norm(module, name, each) for name, each in convolutions.items()}


def _following_norm(module: nn.Module, name: str, convolution: Any) -> FollowingNorm:
    parent = module.get_submodule(name.rpartition(".")[0])
    children = [(key, child) for key, child in parent._modules.items() if child is not None]
    uses = [child for each in module.modules() for child in each._modules.values()]
    if sum(child is convolution for child in uses) > 1:
        raise ArgumentError(f"{name}: take_norm=True cannot serve a convolution that is shared")
    after = 1 + next((i for i, (_, child) in enumerate(children) if child is convolution), 0)
    following = children[after] if after < len(children) else None
    norm_name, norm = following or ("", None)
    if not isinstance(norm, _BatchNorm) or norm.num_features != convolution.out_channels:
        raise ArgumentError(
            f"{name or 'the module'}: take_norm=True needs a batch norm of its output channels "
            f"after the convolution, got {'nothing' if norm is None else type(norm).__name__}"
        )
    return FollowingNorm(parent, norm_name, norm, name)


def _expand_with_norms(
    parent: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Replaces the entries of plain convolutions and their norms before the children see theirs.

    PyTorch shows a child only the entries of its own name, and the norm's have another.
    """
    for name, layer in parent.named_children():
        if isinstance(layer, ConvLayer) and layer.taken_norm is not None:
            layer.replace_plain_entries(state_dict, f"{prefix}{name}.")
