"""Page tokens: where a listing goes on, tied to the listing that it was made for."""

import base64
import binascii
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TypeVar

from service.errors import InvalidRequestError

T = TypeVar("T")
_ROW_ID_DIGITS = 18  # within int64


def make_token(listing: str, after: str) -> str:
    """The token of the page after the item with key `after`."""
    return base64.urlsafe_b64encode(json.dumps([listing, after]).encode()).decode()


def read_token(listing: str, token: str) -> str | None:
    """The key that the page comes after; None for the first page. Raises: InvalidRequestError."""
    if not token:
        return None
    try:
        made_for, after = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise _invalid() from error
    if made_for != listing or not isinstance(after, str):
        raise _invalid()
    return after


def read_row_token(listing: str, token: str) -> int:
    """As read_token for a listing in the order of row ids; 0 for the first page."""
    after = read_token(listing, token)
    if after is None:
        return 0
    if not (after.isascii() and after.isdecimal()) or len(after) > _ROW_ID_DIGITS:
        raise _invalid()
    return int(after)


def page_of(
    items: Sequence[T], *, listing: str, token: str, size: int, key: Callable[[T], str]
) -> tuple[Sequence[T], str]:
    """One page of a short list that is read whole, and the next page's token or ""."""
    after = read_token(listing, token)
    start = 0
    if after is not None:
        keys = [key(item) for item in items]
        if after in keys:
            start = keys.index(after) + 1
        elif keys == sorted(keys):
            start = bisect_left(keys, after)  # the item was deleted meanwhile
        else:
            raise _invalid()
    page = items[start : start + size]
    more = start + size < len(items)
    return page, make_token(listing, key(page[-1])) if more and page else ""


def _invalid() -> InvalidRequestError:
    return InvalidRequestError("the page token is not one of this listing", reason="INVALID_PAGE_TOKEN")
