"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message: the candidates that the name resembles, or nothing."""
    similar = difflib.get_close_matches(name, sorted(set(candidates)), n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""
