"""Who has logged in: sessions that are nothing but a signed cookie, and the tokens that keep foreign pages from using
them.

Pure. Nothing is stored: what a cookie says is believed if it is signed with a key that was made of the API's token, so
that another token ends every session.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from ipaddress import ip_address

LIFETIME = 14 * 86_400
"""Seconds for which a session lasts after it was last renewed."""
RENEWAL = 86_400
"""Seconds after which one that is in use is renewed."""
_PORT = re.compile(r":[0-9]+\Z")
_COOKIE = re.compile(r"([0-9a-f]{32})-([0-9]{1,12})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Session:
    """A browser in which somebody has logged in."""

    id: str
    since: int
    """When it was begun, or last renewed: seconds since the epoch."""
    csrf: str
    """What a request that changes something must repeat; only our own pages know it."""

    def is_to_be_renewed(self, now: float) -> bool:
        return now >= self.since + RENEWAL


class Sessions:
    """Makes and reads the cookies of one API token."""

    def __init__(self, token: str) -> None:
        self._signing = hmac.digest(token.encode(), b"hookdeploy session", "sha256")
        self._guarding = hmac.digest(token.encode(), b"hookdeploy csrf", "sha256")
        self.name = f"hookdeploy-{hmac.digest(token.encode(), b'hookdeploy cookie', 'sha256').hex()[:8]}"
        """What the cookie is called: those of two hookdeploys on one host, which browsers do not tell apart, differ."""

    def begin(self, nonce: bytes, now: float) -> str:
        """The cookie of a new session; ``nonce`` is 16 random bytes."""
        return self._cookie(nonce.hex(), int(now))

    def renewed(self, session: Session, now: float) -> str:
        """Its cookie for another lifetime; its CSRF token stays."""
        return self._cookie(session.id, int(now))

    def read(self, cookie: str, now: float) -> Session | None:
        """The session of a cookie; None if it is over, or was never ours."""
        found = _COOKIE.fullmatch(cookie)
        if found is None:
            return None
        name, since = found[1], int(found[2])
        if not hmac.compare_digest(self._cookie(name, since), cookie) or not -RENEWAL <= now - since < LIFETIME:
            return None
        return Session(name, since, hmac.digest(self._guarding, name.encode(), "sha256").hex())

    def _cookie(self, id: str, since: int) -> str:
        said = f"{id}-{since}"
        return f"{said}-{hmac.digest(self._signing, said.encode(), 'sha256').hex()}"


def is_same(one: str, other: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def is_foreign(*, host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Whether a request was made by a page of somebody else, by what browsers tell of themselves.

    ``Sec-Fetch-Site`` and ``Origin`` (https://fetch.spec.whatwg.org/) are set by the browser and by no page. Where both
    are missing, it was no browser of the last years.
    """
    if fetch_site is not None:  # behind a proxy the host may be another than the browser's
        return fetch_site not in ("same-origin", "none")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def name_in(host: str) -> str:
    """The name or the address in a ``Host`` header, in lower case and without brackets."""
    return _PORT.sub("", host).strip("[]").rstrip(".").lower()


def is_over_tls(*, host: str, fetch_site: str | None) -> bool:
    """Whether the browser asks by https, as far as it tells that itself; no proxy in between need say so.

    ``Sec-Fetch-Site`` is sent to https alone, and to the browser's own machine
    (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header), where this is not to be told from plain http.
    """
    name = name_in(host)
    if fetch_site is None or not name or name == "localhost" or name.endswith(".localhost"):
        return False
    try:
        address = ip_address(name)
    except ValueError:
        return True
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_loopback or address.is_unspecified)
