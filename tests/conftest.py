"""One thread, repeatable examples, and global settings put back after each test."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def default_dtype():
    """Whatever a test does to the default dtype ends with the test."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def double_precision(default_dtype):
    """Mathematics is tested in float64."""
    torch.set_default_dtype(torch.float64)
