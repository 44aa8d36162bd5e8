"""Client of nearhit. `Client` speaks to a server; `nearhit.v1` holds the generated messages; `request_keys`
makes the keys of a chat completion."""

from nearhit.client import Client
from nearhit.errors import NearhitError
from nearhit.keys import RequestKeys, request_keys

__all__ = ["Client", "NearhitError", "RequestKeys", "request_keys"]
