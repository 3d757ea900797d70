"""Loading a plain convolution's checkpoint into a layer that stands in for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# What the entries of a norm begin with whose place a layer has taken.
NORM = "taken_norm."


class PlainLoading(nn.Module):
    """Base of the layers that may load the weights of the ``nn.Conv2d`` that they stand in for.

    Attributes:
        taken_norm: Name, in the parent, of the norm whose place the layer has taken too;
            ``swap_conv`` sets it.
    """

    taken_norm: str | None = None

    @property
    def plain_weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of the ``nn.Conv2d``."""
        raise NotImplementedError

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Expresses the weights of the ``nn.Conv2d`` that this layer stands in for as its own.

        Args:
            state: ``weight``, of ``plain_weight_shape``, and perhaps ``bias``, (out_channels,). If
                the layer has taken the place of the norm that followed, ``taken_norm.weight``,
                ``taken_norm.running_mean`` ... as well.

        Returns:
            Values by their key in this layer's state_dict. A key that is left out stays at its
            initialization. None from a layer that does not contain the convolution.
        """
        return None

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.replace_plain_entries(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def replace_plain_entries(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Puts this layer's entries in place of a plain convolution's, if it can take those over.

        Args:
            state_dict: A checkpoint, which is changed.
            prefix: Where this layer's entries are in it: its name and a dot.
        """
        adapted = self.expand_plain_state(state_dict, prefix)
        if adapted is not None:
            for name in self.plain_names(state_dict, prefix).values():
                del state_dict[name]
            for key, value in {**self.state_dict(), **adapted}.items():
                state_dict[prefix + key] = value

    def plain_names(self, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
        """Names in a checkpoint of what this layer stands in for, by names of their own.

        Args:
            state_dict: A checkpoint.
            prefix: Where this layer's entries are in it: its name and a dot.

        Returns:
            The layer's entries, ``weight`` and ``bias`` if they are a plain convolution's, and, as
            ``taken_norm.weight`` ..., those of the norm whose place it has taken.
        """
        own = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
        if self.taken_norm is None:
            return own
        parent = prefix[:-1].rpartition(".")[0]
        norm = f"{parent}.{self.taken_norm}." if parent else f"{self.taken_norm}."
        return own | {
            f"{NORM}{key[len(norm) :]}": key for key in state_dict if key.startswith(norm)
        }

    def expand_plain_state(
        self, state_dict: Mapping[str, Tensor], prefix: str
    ) -> dict[str, Tensor] | None:
        """What this layer would take from a plain convolution's checkpoint.

        Args:
            state_dict: A checkpoint.
            prefix: Where this layer's entries are in it: its name and a dot.

        Returns:
            What :meth:`adapt_plain_state` makes of the entries; None where they are not a plain
            convolution's or this layer does not contain the convolution.
        """
        names = self.plain_names(state_dict, prefix)
        own = {key for key in names if not key.startswith(NORM)}
        if "weight" not in own or not own <= {"weight", "bias"}:
            return None
        if tuple(state_dict[names["weight"]].shape) != self.plain_weight_shape:
            return None
        return self.adapt_plain_state({key: state_dict[name] for key, name in names.items()})
