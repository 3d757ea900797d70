"""How a call is cut into blocks and threads. Nothing here touches a GPU."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

import numpy as np

from rednet.ops.cuda.problem import (
    BLOCK_BYTES,
    COLUMNS,
    PROBLEM,
    ROWS,
    THREADS,
    Axis,
    Call,
    Specialization,
)
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import ceil_div

WARP = 32
# What every GPU gives to a block unasked, and what a Hopper multiprocessor has for its blocks.
SHARED_BYTES = 48 * 1024
HOPPER_SHARED_BYTES = 228 * 1024
WIDEST_ACCESS = 16  # bytes that a thread loads or stores at once, at most
MOST_BLOCKS = 2**31 - 1
# Coordinates, also those of padding, are 32-bit integers in the kernels.
LARGEST_COORDINATE = 2**30


@dataclass(frozen=True)
class Launch:
    """A kernel launch, but for the tensors.

    Attributes:
        specialization: The code.
        blocks: Blocks of the grid, along its first dimension.
        threads: Threads of a block, likewise.
        shared_bytes: Dynamic shared memory of a block.
        problem: A single ``PROBLEM``.
    """

    specialization: Specialization
    blocks: int
    threads: int
    shared_bytes: int
    problem: np.ndarray


@lru_cache(maxsize=4096)
def plan(call: Call) -> Launch | None:
    """Cuts a call into blocks.

    Returns:
        The cheapest launch, by an estimate; None where nothing fits: a line of samples is too long
        for shared memory, or a number too large for 32 bits.
    """
    if max(map(_largest_coordinate, call.axes())) > LARGEST_COORDINATE:
        return None
    tilings = candidates(call)
    return min(tilings, key=Tiling.cost).launch() if tilings else None


def candidates(call: Call) -> list[Tiling]:
    """The tilings to choose from, all of which the device can hold."""
    return [tiling for tile in _tiles(call) if (tiling := Tiling(call, *tile)).fits()]


def _largest_coordinate(axis: Axis) -> int:
    past_the_end = max(axis.image, axis.output) + 2 * THREADS * axis.phases
    return axis.stride * past_the_end + axis.padding + axis.dilation * axis.kernel


def _tiles(call: Call) -> Iterator[tuple[int, int, int]]:
    """Heights, widths and slices worth trying: equal parts of the image, many threads a block."""
    rows, columns = call.axes()
    for width in _parts(columns.phase_destinations, COLUMNS, THREADS):
        threads_of_row = width // COLUMNS
        for height in _parts(rows.phase_destinations, ROWS, THREADS // threads_of_row):
            most = THREADS // (threads_of_row * (height // ROWS))
            for slices in _slices(call, most):
                yield height, width, slices


def _parts(length: int, multiple: int, most: int) -> list[int]:
    """Sizes of equal parts of a length, the largest first.

    They are multiples of ``multiple``, at most ``most`` times as large. Each is at most three
    quarters of the one before: sizes in between would differ by little.
    """
    count = ceil_div(length, multiple)
    parts: list[int] = []
    for number in range(ceil_div(count, most), count + 1):
        part = ceil_div(count, number)
        if not parts or 4 * part <= 3 * parts[-1]:
            parts.append(part)
    return [part * multiple for part in parts]


def _slices(call: Call, most: int) -> list[int]:
    """Numbers of groups for a block; where channels are last, they divide the groups."""
    if not call.channels_last:
        return sorted({min(most, call.batch * call.groups), max(1, most // 2), 1}, reverse=True)
    return [number for number in (8, 4, 2, 1) if number <= most and call.groups % number == 0]


@dataclass(frozen=True)
class Tiling:
    """A call in tiles of ``height`` x ``width`` destinations of each of ``slices`` groups."""

    call: Call
    height: int
    width: int
    slices: int

    # ---- shared memory

    @cached_property
    def _axes(self) -> tuple[Axis, Axis]:
        return self.call.axes()

    @cached_property
    def specialization(self) -> Specialization:
        """The code that serves the call."""
        return self.call.specialization()

    @cached_property
    def line(self) -> int:
        """Elements for a row of samples: each part it is dealt into is read in whole packs."""
        columns = self._axes[1].span(self.width)
        stride = self.specialization.stride
        return stride * _ceil(ceil_div(columns, stride), COLUMNS) if stride else columns

    @cached_property
    def sample_rows(self) -> int:
        """Rows of samples that a block reads."""
        rows = self._axes[0]
        return min(rows.span(self.height), rows.samples)

    @cached_property
    def chunks(self) -> int:
        """Parts of at most a thread's channels that a group is cut into."""
        return ceil_div(self.call.group_channels, self.specialization.channels)

    def _slice_pitch(self, band: int) -> int:
        chunks = self.chunks if self.call.operation == "grad_weight" else 1
        pitch = chunks * self.specialization.channels * band * self.line
        # Where neighboring threads read neighboring slices, these start in different banks.
        return _ceil(pitch, 32) + 8 if self.call.channels_last and self.slices > 1 else pitch

    def _samples_bytes(self, band: int) -> int:
        return _ceil(self.slices * self._slice_pitch(band) * self._sum_bytes, WIDEST_ACCESS)

    def _weights_bytes(self, band: int) -> int:
        """Weights pass through shared memory only where channels are last."""
        if not self.call.channels_last:
            return 0
        if self.call.operation == "grad_input":
            pixels = band * self._axes[1].span(self.width)
        else:
            pixels = self.height * self.width
        return pixels * self.slices * self.call.taps * self._itemsize

    def _shared_bytes(self, band: int) -> int:
        return BLOCK_BYTES + self._samples_bytes(band) + self._weights_bytes(band)

    @cached_property
    def band(self) -> int:
        """Rows of samples in shared memory at a time, equal parts of them; 0 if none fits."""
        rows = self.sample_rows
        most = bisect_right(range(1, rows + 1), SHARED_BYTES, key=self._shared_bytes)
        return ceil_div(rows, ceil_div(rows, most)) if most else 0

    # ---- the grid

    @cached_property
    def threads(self) -> int:
        """Threads of a block, in whole warps."""
        return _ceil(self.slices * (self.height // ROWS) * (self.width // COLUMNS), WARP)

    @cached_property
    def _images_and_groups(self) -> tuple[int, int]:
        """Where channels are not last, the groups of all images are like those of one."""
        call = self.call
        return (call.batch, call.groups) if call.channels_last else (1, call.batch * call.groups)

    @cached_property
    def blocks(self) -> int:
        """Blocks of the grid."""
        rows, columns = self._axes
        images, groups = self._images_and_groups
        tiles = rows.tiles(self.height) * columns.tiles(self.width)
        chunks = 1 if self.call.operation == "grad_weight" else self.chunks
        return (
            tiles * rows.phases * columns.phases * ceil_div(groups, self.slices) * chunks * images
        )

    # ---- the choice

    def fits(self) -> bool:
        """Whether the device can hold a block and the grid."""
        _, groups = self._images_and_groups
        return self.band > 0 and max(self.blocks, groups) <= MOST_BLOCKS

    def cost(self) -> float:
        """Estimated clock cycles of one multiprocessor for the whole grid.

        It counts instructions, at 128 a cycle, bytes that come from the caches, at 32 a cycle, and
        a wait for every band, as if none overlapped, and adds to that where few threads are there
        to overlap them. It ranks tilings and predicts nothing; no GPU was at hand to tune it.
        """
        rows, columns = self._axes
        taps = rows.taps * columns.taps
        channels = self.specialization.channels * self.chunks
        products = ROWS * COLUMNS * channels * taps * self.threads
        samples = self.slices * channels * self.sample_rows * _ceil(columns.span(self.width), 8)
        weights = self.slices * self.height * self.width * taps
        if self.call.operation == "grad_input":
            weights = weights * columns.span(self.width) // self.width
        instructions = 1.2 * products + 6 * samples
        if self.call.channels_last:
            instructions += 15 * weights * self._itemsize / self._copy_bytes()
        run = self.slices * self.call.taps if self.call.channels_last else self.width
        run *= self._itemsize
        # A run of memory touches half a sector of 32 bytes too many on average.
        moved = self._itemsize * (samples + weights * (run + 16) / run)
        waits = 300 * (1 + self.sample_rows / self.band)
        block = instructions / 128 + moved / 32 + waits
        resident = self.threads * (HOPPER_SHARED_BYTES // (self._shared_bytes(self.band) + 1024))
        return self.blocks * block * (1 + THREADS / resident)

    def launch(self) -> Launch:
        """The launch of this tiling."""
        _, groups = self._images_and_groups
        rows, columns = self._axes
        problem = np.zeros((), PROBLEM)
        problem["rows"] = rows.fields(self.height)
        problem["columns"] = columns.fields(self.width)
        problem["groups"] = groups
        problem["group_channels"] = self.call.group_channels
        problem["chunks"] = self.chunks
        problem["slices"] = self.slices
        problem["slice_blocks"] = ceil_div(groups, self.slices)
        problem["band"] = self.band
        problem["line"] = self.line
        problem["slice_pitch"] = self._slice_pitch(self.band)
        problem["samples_bytes"] = self._samples_bytes(self.band)
        problem["copy_bytes"] = self._copy_bytes()
        problem["packed"] = self._packed()
        shared_bytes = self._shared_bytes(self.band)
        return Launch(self.specialization, self.blocks, self.threads, shared_bytes, problem)

    # ---- alignment

    def _copy_bytes(self) -> int:
        """The widest copies that the weights of a pixel, a run of memory, consist of."""
        return gcd(self.call.alignment, self.slices * self.call.taps * self._itemsize)

    def _packed(self) -> bool:
        """Whether neighbors in memory can be moved together."""
        if self.call.channels_last:
            # Every group, and so every pixel, starts at a multiple of a group's size.
            group = self.call.group_channels * self._itemsize
            return gcd(self.call.alignment, group) == WIDEST_ACCESS
        columns = self._axes[1]
        aligned = self.call.alignment >= COLUMNS * self._itemsize
        return aligned and columns.phases == 1 and columns.destinations % COLUMNS == 0

    @property
    def _itemsize(self) -> int:
        return self.call.dtype.itemsize

    @property
    def _sum_bytes(self) -> int:
        return accumulation_dtype(self.call.dtype).itemsize


def _ceil(number: int, multiple: int) -> int:
    return ceil_div(number, multiple) * multiple
