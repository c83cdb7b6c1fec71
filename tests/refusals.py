"""What tests of error messages share."""

import pytest
import torch


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


def refused(error, message, call, *args, **options):
    """The call raises this error, its message has this pattern and one line."""
    with pytest.raises(error, match=message) as caught:
        call(*args, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
