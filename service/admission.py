"""Which entries a category stores. Import and offline loads are not asked."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

from service.keys import fingerprint_key, scope_key
from service.policy import Policy
from service.records import NewEntry

SIGHTINGS_HALF = 32_768
"""Sightings after which the older half of what a category remembers is forgotten."""

SIGHTINGS_MOST = 4_194_304
"""Of all categories, some 400 MB; beyond, that one is forgotten which was asked longest ago."""


class Admission(Enum):
    """What becomes of an entry that is to be stored."""

    STORED = "stored"
    TOO_CHEAP = "too_cheap"
    FIRST_SIGHTING = "first_sighting"
    INCOMPLETE = "incomplete"


Admit = Callable[[Policy, NewEntry], Admission]


class Sightings:
    """Which requests were seen lately, by category; of this process, gone with it.

    Of each category the last SIGHTINGS_HALF different requests at least, twice as many at most: what is seen
    goes into the newer of two sets; when that is full, it takes the place of the older one.
    """

    def __init__(self, *, half: int = SIGHTINGS_HALF, most: int = SIGHTINGS_MOST) -> None:
        self._half = half
        self._most = most
        self._lock = threading.Lock()  # guards _seen and _count
        self._count = 0
        self._seen: OrderedDict[int, tuple[set[bytes], set[bytes]]] = OrderedDict()  # newer and older

    def see(self, category_id: int, request: bytes) -> bool:
        """Remember a request; whether it was seen before."""
        with self._lock:
            newer, older = self._seen.pop(category_id, (set(), set()))
            known = request in newer or request in older
            self._count -= len(newer) + len(older)
            newer.add(request)
            if len(newer) >= self._half:
                newer, older = set(), newer
            self._seen[category_id] = newer, older
            self._count += len(newer) + len(older)
            while self._count > self._most and len(self._seen) > 1:
                _, forgotten = self._seen.popitem(last=False)
                self._count -= sum(map(len, forgotten))
            return known


def admit(policy: Policy, item: NewEntry, *, sightings: Sightings) -> Admission:
    """Whether the policy lets the entry be stored. A complete and costly enough one is remembered as seen."""
    if item.completion != "complete":
        return Admission.INCOMPLETE
    if 0 < item.cost < policy.min_cost:
        return Admission.TOO_CHEAP
    if not policy.second_sighting:
        return Admission.STORED
    known = sightings.see(item.category_id, request_key(item))
    # What takes an entry's place was asked before: that is how the entry came to be.
    return Admission.STORED if known or item.replace_name else Admission.FIRST_SIGHTING


def request_key(item: NewEntry) -> bytes:
    """What two sightings of one request share: scope and fingerprint; without one the scope and the code,
    without that the scope and the vector, as stored."""
    if item.fingerprint is not None:
        return fingerprint_key(item.scope, item.fingerprint)
    digest = hashlib.blake2b(digest_size=16, person=b"sighting")
    digest.update(scope_key(item.scope).to_bytes(8, "little"))
    digest.update(item.modality.encode() + b"\0")
    digest.update(item.vector.tobytes() if item.coding is None else item.coding.code)
    return digest.digest()
