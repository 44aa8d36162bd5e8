"""Entries in numbers, as imports and scans meet them."""

import random
from typing import Any

from store_rows import new_entry

from service.records import Coding, NewEntry

CODING = Coding(encoder_id="e" * 32, code=bytes(range(8)), label_code=None)
LABELLED = Coding(encoder_id="e" * 32, code=bytes(8), label_code=bytes(range(8, 16)))


def drawn_entries(cache_seed: int, categories: list[int], count: int) -> list[NewEntry]:
    """Entries some of which share names, fingerprints and scopes."""
    draw = random.Random(cache_seed)
    items = []
    for _ in range(count):
        fields: dict[str, Any] = {
            "scope": draw.choice(["", "s"]),
            "fingerprint": draw.choice([None, *"abcdefgh"]),
            "response": draw.choice([b"", b"yes"]),
            "tags": draw.choice([(), ("t", "u")]),
            "labels": draw.choice([(), ("l",)]),
            "ttl_ms": draw.choice([None, 10, 10_000]),
            "coding": draw.choice([None, CODING, LABELLED]),
        }
        items.append(new_entry(draw.choice(categories), f"n{draw.randrange(40)}", **fields))
    return items
