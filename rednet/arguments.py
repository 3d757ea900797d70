"""Checks of single numbers among the arguments of layers and hooks."""

from __future__ import annotations

import math
from typing import TypeGuard

from rednet.errors import ArgumentError


def is_positive_int(value: object) -> bool:
    """Whether ``value`` is an int of at least 1; True does not count as one."""
    return _is_int(value) and value >= 1


def _is_int(value: object) -> TypeGuard[int]:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def positive_int(name: str, value: int) -> int:
    """Returns ``value`` if it is an int of at least 1.

    Raises:
        TypeError: If it is not an int.
        ArgumentError: If it is smaller than 1.
    """
    if not _is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not is_positive_int(value):
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
