"""Errors caused by what a user gave: a path, a config, an image, an installation.

The commands in tools/ print only their message, without a traceback. Every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something a user gave cannot be used; the message says what was found and what to do."""


class ArgumentError(UserError, ValueError):
    """A constructor's argument, as a config gives it, has a value that cannot be served."""


class ImageError(UserError):
    """An image file cannot be read."""


class DifferentOutputError(UserError, RuntimeError):
    """A model that was rewritten, such as a fused one, does not compute what it did before."""


class MissingDependencyError(UserError, ImportError):
    """An optional package is needed and not installed."""


def first_names(names: Sequence[str], count: int) -> str:
    """At most ``count`` names for a message, and how many more there are."""
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
