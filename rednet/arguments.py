"""Checks of single numbers among the arguments of layers and hooks."""

from __future__ import annotations

import math

from rednet.errors import ArgumentError


def positive_int(name: str, value: int) -> int:
    """Returns ``value`` if it is an int of at least 1.

    Raises:
        TypeError: If it is not an int.
        ArgumentError: If it is smaller than 1.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ArgumentError(f"{name} must be at least 1, got {value!r}")
    return int(value)


def positive_number(name: str, value: float) -> float:
    """Returns ``value`` if it is a finite number above 0.

    Raises:
        TypeError: If it is not a number.
        ArgumentError: If it is not finite and above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{name} must be finite and above 0, got {value!r}")
    return value
