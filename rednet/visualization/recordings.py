"""What a layer shows of itself: maps over the image, attention, and magnitudes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# A page holds the kernels at no more than this many positions along each side of a feature map.
LARGEST_LATTICE = 64
Point = tuple[float, float]


@dataclass(frozen=True)
class Maps:
    """Values of a layer at each output pixel of one image or region.

    Attributes:
        quantity: What the values are.
        unit: What each map belongs to, such as ``'group'``.
        values: (M, Ho, Wo), one map for each unit.
        batch: Images or regions of the call, of which the first was kept.
        kernels_at_points: (P, M, Kh, Kw), the kernels at the named points; None without kernels.
        lattice: (M, Kh, Kw, h, w), the kernels on a regular lattice; None where it was not asked
            for.
    """

    quantity: str
    unit: str
    values: np.ndarray
    batch: int
    kernels_at_points: np.ndarray | None = None
    lattice: np.ndarray | None = None


@dataclass(frozen=True)
class Attention:
    """Values of a layer for one image as a whole.

    Attributes:
        heads: A vector for each head, by the head's name.
    """

    heads: Mapping[str, np.ndarray]


Recording = Maps | Attention


@dataclass(frozen=True)
class Sampling:
    """Where the kernels of an image are kept: all of them would fill the memory.

    Attributes:
        points: (x, y) as shares of the width and the height of the network's input, below 1.
        lattice: Whether to keep the kernels on a regular lattice too.
    """

    points: tuple[Point, ...] = field(default=())
    lattice: bool = False

    def at_points(self, kernels: Tensor) -> np.ndarray:
        """Picks (P, M, Kh, Kw) from the kernels of an image, (M, Kh, Kw, Ho, Wo)."""
        height, width = kernels.shape[-2:]
        picked = [kernels[..., int(y * height), int(x * width)] for x, y in self.points]
        return to_numpy(torch.stack(picked)) if picked else np.empty((0, *kernels.shape[:3]))

    def on_lattice(self, kernels: Tensor) -> np.ndarray | None:
        """Picks (M, Kh, Kw, h, w), with h and w of at most ``LARGEST_LATTICE``."""
        if not self.lattice:
            return None
        rows, columns = (lattice_positions(length) for length in kernels.shape[-2:])
        return to_numpy(kernels[..., rows, :][..., columns])


def lattice_positions(length: int) -> Tensor:
    """Evenly spread positions along a side: all, or ``LARGEST_LATTICE`` of them."""
    count = min(length, LARGEST_LATTICE)
    return ((torch.arange(count) + 0.5) * length / count).long()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy as float32 in the CPU's memory."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
