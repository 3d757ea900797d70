"""Words in the pictures."""

from __future__ import annotations

import pytest

from rednet.visualization.drawing import _plural


@pytest.mark.parametrize(
    ("word", "expected"),
    [("group", "groups"), ("image", "images"), ("switch", "switches"), ("class", "classes")],
)
def test_plurals(word: str, expected: str) -> None:
    assert _plural(word) == expected
