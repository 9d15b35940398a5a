"""Page tokens: where the next page begins, bound to the filter that the first page was asked with.

A token is opaque to callers and no secret: it names a position inside what its filter shows anyway. The digest in it
makes a token of another filter, or a damaged one, a clear error instead of a page of something else.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Final

import orjson

from scheduler_service.api import limits
from scheduler_service.api.checks import Checks

_DIGEST_BYTES: Final = 12


def encode_token(position: Sequence[str], bound_to: object) -> str:
    """The token of the page that follows `position`."""
    body = orjson.dumps(list(position))
    return base64.urlsafe_b64encode(_digest(body, bound_to) + body).decode().rstrip("=")


def decode_token(check: Checks, token: str, bound_to: object) -> tuple[str, ...] | None:
    """The position that a token names; None for the first page."""
    if not token:
        return None
    raw = _raw(token)
    if raw is None or raw[:_DIGEST_BYTES] != _digest(raw[_DIGEST_BYTES:], bound_to):
        check.refuse("page_token", "is damaged, or belongs to a list with another filter: start again without it")
        return None
    return tuple(orjson.loads(raw[_DIGEST_BYTES:]))


def _raw(token: str) -> bytes | None:
    if len(token) > limits.PAGE_TOKEN_BYTES_MAX or not token.isascii():
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    # Base64 leaves spare bits in its last character; only the one spelling that we hand out counts.
    return raw if base64.urlsafe_b64encode(raw).decode().rstrip("=") == token else None


def _digest(body: bytes, bound_to: object) -> bytes:
    bound = orjson.dumps(bound_to, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(len(bound).to_bytes(4) + bound + body).digest()[:_DIGEST_BYTES]
