"""Client of nearhit. `Client` speaks to a server; `nearhit.v1` holds the generated messages; `request_keys`
makes the keys of a chat completion, `load_of` a load of a latency."""

from nearhit.client import Client, load_of
from nearhit.errors import NearhitError
from nearhit.keys import RequestKeys, request_keys

__all__ = ["Client", "NearhitError", "RequestKeys", "load_of", "request_keys"]
