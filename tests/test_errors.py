from __future__ import annotations

import pytest

from rednet.errors import first_names


@pytest.mark.parametrize(
    ("names", "shown"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c", "d"], "a, b and 2 more")],
)
def test_first_names(names: list[str], shown: str) -> None:
    assert first_names(names, 2) == shown
