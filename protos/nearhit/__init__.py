"""Client of nearhit. `Client` speaks to a server; `nearhit.v1` holds the generated messages."""

from nearhit.client import Client
from nearhit.errors import NearhitError

__all__ = ["Client", "NearhitError"]
