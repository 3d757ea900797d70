from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of PyTorch's threads, which the test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
