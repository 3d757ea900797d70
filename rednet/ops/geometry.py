"""The geometry of a sliding window, shared by the operator, its backends and the layers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch

from rednet.errors import ArgumentError

IntOrPair = int | Sequence[int]
Pair = tuple[int, int]


def ceil_div(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)


def pair(name: str, value: IntOrPair, minimum: int) -> Pair:
    """Reads an int or a pair of ints as ``(vertical, horizontal)``.

    Args:
        name: The argument's name, for the error message.
        value: An int, or a sequence of two ints.
        minimum: The smallest value allowed.

    Raises:
        TypeError: If ``value`` is neither an int nor a sequence of two ints.
        ArgumentError: If a number is smaller than ``minimum`` or there are not two.
    """
    # As nearly always: without the questions below, which take longer.
    if type(value) is int and value >= minimum:
        return value, value
    if type(value) is tuple and len(value) == 2:
        first, second = value
        if type(first) is type(second) is int and first >= minimum <= second:
            return value
    one = isinstance(value, str) or not isinstance(value, Sequence)
    values: tuple[Any, ...] = (value, value) if one else tuple(cast(Sequence[int], value))
    if len(values) != 2:
        raise ArgumentError(f"{name} must be an int or a pair of ints, got {value!r}")
    for number in values:
        if not _is_integer(number):
            raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
        if number < minimum:
            raise ArgumentError(f"{name} must be at least {minimum}, got {value!r}")
    return values


def _is_integer(number: object) -> bool:
    # NumPy's integers are Integral too, which takes long to find out; a traced size is a SymInt.
    return isinstance(number, (int, Integral, torch.SymInt)) and not isinstance(number, bool)


class Geometry(NamedTuple):
    """Kernel size, stride, padding and dilation, each as ``(vertical, horizontal)``."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def output_size(self, height: int, width: int) -> Pair:
        """The convolution formula: ``floor((H + 2p - d(K - 1) - 1) / s) + 1`` for each side."""
        return self._output_length(0, height), self._output_length(1, width)

    def _output_length(self, side: int, length: int) -> int:
        span = self.dilation[side] * (self.kernel_size[side] - 1) + 1
        return (length + 2 * self.padding[side] - span) // self.stride[side] + 1

    def window(self, tap: Pair, output_size: Pair) -> tuple[slice, slice]:
        """The slices of the padded input that kernel position ``tap`` reads, a pixel an output."""
        rows, columns = output_size
        return self._window(0, tap[0], rows), self._window(1, tap[1], columns)

    def _window(self, side: int, tap: int, length: int) -> slice:
        start = tap * self.dilation[side]
        return slice(start, start + (length - 1) * self.stride[side] + 1, self.stride[side])

    def taps(self) -> list[Pair]:
        """All kernel positions, row by row."""
        rows, columns = self.kernel_size
        return [(row, column) for row in range(rows) for column in range(columns)]
