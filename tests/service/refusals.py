"""What a refused call must look like to its caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from nearhit.errors import NearhitError


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[None]:
    """The body must end in a NearhitError of this status and reason."""
    with pytest.raises(NearhitError) as raised:
        yield
    assert (raised.value.code, raised.value.reason) == (code, reason), str(raised.value)
