from __future__ import annotations

import numpy as np
import pytest

from rednet.arguments import positive_int, positive_number


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_positive_int_refuses_what_is_no_int(value: object) -> None:
    with pytest.raises(TypeError, match="groups must be an int, got"):
        positive_int("groups", value)


def test_positive_int_takes_numpys() -> None:
    assert type(positive_int("groups", np.int64(3))) is int


@pytest.mark.parametrize("value", [0, -2])
def test_positive_int_refuses_what_is_too_small(value: int) -> None:
    with pytest.raises(ValueError, match=f"groups must be at least 1, got {value}"):
        positive_int("groups", value)


@pytest.mark.parametrize("value", [True, "1", None, (1,)])
def test_positive_number_refuses_what_is_no_number(value: object) -> None:
    with pytest.raises(TypeError, match="ratio must be a number, got"):
        positive_number("ratio", value)


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf")])
def test_positive_number_refuses_other_numbers(value: float) -> None:
    with pytest.raises(ValueError, match=f"ratio must be finite and above 0, got {value}"):
        positive_number("ratio", value)
