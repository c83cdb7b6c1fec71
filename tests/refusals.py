"""Shared by the tests of error messages."""

import pytest
import torch


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


def refused(error, message, call, *args, **options):
    """Check that the call raises this error, with a message of one line that matches the pattern."""
    with pytest.raises(error, match=message) as caught:
        call(*args, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
