"""Page tokens: a place in a list, bound to the request that it belongs to.

A token is the base64url form, without padding, of

    check   12 bytes   keyed BLAKE2b over the request and the place
    place   occurred_at (8 bytes, microseconds), length of `other` (1 byte), other, ref

The key is made from the log's id, so tokens outlive a restart and work on every query process of the log. It is no secret: the check
finds tokens that were changed, or belong to another request or another log; it protects nobody from a caller who forges one, who
would learn nothing but a list that the same caller may read anyway.
"""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest

from watertower.ports import ListCursor

PAGE_TOKEN_CHARACTERS_MAX = 400
"""Characters of a page token: room for ids of 128 bytes."""

_CHECK_BYTES = 12
_PLACE = struct.Struct(">QB")


class PageTokens:
    """Makes and reads the tokens of one log."""

    def __init__(self, log_id: str) -> None:
        self._key = blake2b(log_id.encode(), digest_size=32, person=b"watertower.page").digest()

    def encode(self, method: str, of: str, kind: int, cursor: ListCursor) -> str:
        """The token for the page after `cursor`, of the list (method, of, kind)."""
        other = cursor.other.encode()
        place = _PLACE.pack(cursor.occurred_at, len(other)) + other + cursor.ref.encode()
        return urlsafe_b64encode(self._check(method, of, kind, place) + place).rstrip(b"=").decode()

    def decode(self, method: str, of: str, kind: int, token: str) -> ListCursor | None:
        """The inverse; None for anything that `encode` did not make of the same list."""
        if len(token) <= PAGE_TOKEN_CHARACTERS_MAX and token.isascii():
            try:
                data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
            except ValueError:
                data = b""
            check, place = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
            # The decoder skips what is not of the alphabet; a token has one written form.
            written = urlsafe_b64encode(data).rstrip(b"=").decode()
            if written == token and compare_digest(check, self._check(method, of, kind, place)):
                occurred_at, length = _PLACE.unpack_from(place)
                ids = place[_PLACE.size :]
                return ListCursor(occurred_at, ids[:length].decode(), ids[length:].decode())
        return None

    def _check(self, method: str, of: str, kind: int, place: bytes) -> bytes:
        # Every part but the last has its length in front, so that no two requests look alike.
        parts = (method.encode(), of.encode(), kind.to_bytes(4, "big"))
        request = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        return blake2b(request + place, key=self._key, digest_size=_CHECK_BYTES).digest()
