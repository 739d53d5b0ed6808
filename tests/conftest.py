"""What holds for all tests."""

from collections.abc import Iterator

import pytest

import tests.fuzz_kit  # noqa: F401 - `--hypothesis-profile` knows its profiles


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models of this size run fastest on one thread, and workers of the tests want the other cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
