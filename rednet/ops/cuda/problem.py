"""What the kernels compute, in numbers: the counterpart of ``problem.cuh``, which has the words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
import torch

from rednet.ops.geometry import Geometry, Pair, ceil_div

OPERATIONS = ("forward", "grad_input", "grad_weight")
SPECIALIZED_WIDTHS = (3, 5, 7)
SPECIALIZED_STRIDES = (1, 2)

ROWS = COLUMNS = 2  # destinations of a thread
THREADS = 128  # most threads of a block
BLOCK_BYTES = 128  # of shared memory, for what a block knows of itself

_SCALARS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@dataclass(frozen=True)
class Specialization:
    """What is known when the source is compiled; image sizes are not among it.

    Attributes:
        operation: One of ``OPERATIONS``.
        dtype: The tensors' dtype.
        channels_last: Whether neighbors in memory are the channels of a pixel or the pixels of a
            row.
        kernel_width: One of ``SPECIALIZED_WIDTHS``, or 0: any.
        stride: The horizontal stride without the divisor that it shares with the dilation: one of
            ``SPECIALIZED_STRIDES``, or 0: any.
    """

    operation: str
    dtype: torch.dtype
    channels_last: bool
    kernel_width: int
    stride: int

    @property
    def channels(self) -> int:
        """Channels that a thread sums over or for; they take the better part of its registers."""
        return 8 if self.dtype == torch.float64 else 16

    def macros(self) -> dict[str, object]:
        """The macros that the source is written with."""
        return {
            "OPERATION": OPERATIONS.index(self.operation),
            "SCALAR": _SCALARS[self.dtype],
            "CHANNELS_LAST": int(self.channels_last),
            "KERNEL_WIDTH": self.kernel_width,
            "STRIDE": self.stride,
            "CHANNELS": self.channels,
            "ROWS": ROWS,
            "COLUMNS": COLUMNS,
            "THREADS": THREADS,
            # It leaves a thread 255 registers or 168; another block would leave too few.
            "BLOCKS_PER_MULTIPROCESSOR": 2 if self.dtype == torch.float64 else 3,
            "BLOCK_BYTES": BLOCK_BYTES,
        }


def all_specializations() -> Iterator[Specialization]:
    """Everything that can be compiled."""
    windows = [(width, stride) for width in SPECIALIZED_WIDTHS for stride in SPECIALIZED_STRIDES]
    for operation in OPERATIONS:
        for dtype in _SCALARS:
            for channels_last in (False, True):
                for width, stride in [*windows, (0, 0)]:
                    yield Specialization(operation, dtype, channels_last, width, stride)


@dataclass(frozen=True)
class Call:
    """One call of the operator.

    Attributes:
        operation: One of ``OPERATIONS``.
        dtype: The tensors' dtype.
        channels_last: The tensors' memory format.
        batch: Images.
        channels: Channels of the images.
        groups: Groups of the weight.
        image: Height and width of the input.
        output: Height and width of the output.
        geometry: Kernel size, stride, padding and dilation.
        alignment: The largest power of two, 16 at most, that divides the addresses of all tensors.
    """

    operation: str
    dtype: torch.dtype
    channels_last: bool
    batch: int
    channels: int
    groups: int
    image: Pair
    output: Pair
    geometry: Geometry
    alignment: int

    @property
    def group_channels(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """Elements of a kernel."""
        return self.geometry.kernel_size[0] * self.geometry.kernel_size[1]

    def axes(self) -> tuple[Axis, Axis]:
        """The two axes, the vertical one first."""
        return self._axis(0), self._axis(1)

    def _axis(self, side: int) -> Axis:
        return Axis(
            transposed=self.operation == "grad_input",
            image=self.image[side],
            output=self.output[side],
            kernel=self.geometry.kernel_size[side],
            stride=self.geometry.stride[side],
            padding=self.geometry.padding[side],
            dilation=self.geometry.dilation[side],
        )

    def specialization(self) -> Specialization:
        """The code that serves this call."""
        columns = self._axis(1)
        width, stride = columns.kernel, columns.reduced_stride
        general = Specialization(self.operation, self.dtype, self.channels_last, 0, 0)
        if width not in SPECIALIZED_WIDTHS or stride not in SPECIALIZED_STRIDES:
            return general
        if self.operation == "grad_weight" and self.group_channels > general.channels:
            # Only the general code sums over more channels than a thread has registers for.
            return general
        return replace(general, kernel_width=width, stride=stride)


@dataclass(frozen=True)
class Axis:
    """One axis of a call, taken apart into phases of dilation 1."""

    transposed: bool
    image: int
    output: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reduced_stride(self) -> int:
        """The stride without the divisor that it shares with the dilation."""
        return self.stride // gcd(self.stride, self.dilation)

    @property
    def reduced_dilation(self) -> int:
        """The dilation without the divisor that it shares with the stride."""
        return self.dilation // gcd(self.stride, self.dilation)

    @property
    def phases(self) -> int:
        """Problems of dilation 1 that the destinations are dealt into."""
        return self.reduced_dilation * (self.stride if self.transposed else 1)

    @property
    def advance(self) -> int:
        """Samples from one destination of a phase to the next."""
        return 1 if self.transposed else self.reduced_stride

    @property
    def taps(self) -> int:
        """Taps of a phase, at most."""
        return ceil_div(self.kernel, self.reduced_stride) if self.transposed else self.kernel

    @property
    def destinations(self) -> int:
        """Pixels that own a sum."""
        return self.image if self.transposed else self.output

    @property
    def phase_destinations(self) -> int:
        """Destinations of a phase, at most."""
        return ceil_div(self.destinations, self.phases)

    @property
    def samples(self) -> int:
        """Samples of a phase that lie inside the image, at most."""
        if self.transposed:
            return ceil_div(self.output, self.reduced_dilation)
        return ceil_div(self.image, self.dilation)

    def span(self, tile: int) -> int:
        """Samples that the windows of ``tile`` neighboring destinations cover."""
        return self.advance * (tile - 1) + self.taps

    def tiles(self, tile: int) -> int:
        """Tiles of a phase."""
        return ceil_div(self.phase_destinations, tile)

    def fields(self, tile: int) -> tuple[int, ...]:
        """The numbers of ``struct Axis``."""
        return (
            self.image,
            self.output,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.reduced_stride,
            self.reduced_dilation,
            self.phases,
            tile,
            self.tiles(tile),
        )


_AXIS = np.dtype(
    [
        (field, np.int32)
        for field in (
            *("image", "output", "kernel", "stride", "padding", "dilation"),
            *("reduced_stride", "reduced_dilation", "phases", "tile", "tiles"),
        )
    ],
    align=True,
)
# struct Problem, which kernels receive by value.
PROBLEM = np.dtype(
    [
        ("rows", _AXIS),
        ("columns", _AXIS),
        *(
            (field, np.int32)
            for field in (
                *("groups", "group_channels", "chunks", "slices", "slice_blocks"),
                *("band", "line", "slice_pitch", "samples_bytes", "copy_bytes", "packed"),
            )
        ),
    ],
    align=True,
)
