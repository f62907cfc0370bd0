"""GitHub's API: gidgethub knows what to say, treq says it, and this sets the limits.

It asks nothing by itself. No redirect is followed, and no other origin is asked even where an answer's ``Link`` leads
there, so the token goes to the configured API alone; it is in no log and in no exception's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from gidgethub import HTTPException, RedirectionException
from gidgethub.abc import CACHE_TYPE, GitHubAPI
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, _HTTP11ClientFactory
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from twisted_hook import __version__
from twisted_hook.configvalues import is_loopback
from twisted_hook.githubrest import LARGEST_ANSWER, TIMEOUT, VERSION
from twisted_hook.model import ForgeFailed
from twisted_hook.process import Reactor
from twisted_hook.redaction import Redactor

LONGEST_PAUSE = 86_400.0
"""Seconds; GitHub's limits are of an hour, and no answer is to silence us for ever."""
_NOT_UNDERSTOOD = (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError, OSError)
"""What gidgethub and those who read on raise about an answer that is not as documented."""


def quiet_until(status: int, headers: Mapping[str, str], now: float) -> float:
    """Before when GitHub does not want to be asked again; ``now`` if it does not mind. Seconds since the epoch.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
    """
    until = now
    if (pause := headers.get("retry-after", "")).isdecimal():
        until = now + float(pause)
    elif headers.get("x-ratelimit-remaining") == "0" and (at := headers.get("x-ratelimit-reset", "")).isdecimal():
        until = float(at)
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        until = now + 60.0
    return min(max(until, now), now + LONGEST_PAUSE)


class GitHub(GitHubAPI):
    """One token, or none, at one GitHub. Ask within ``in_words``."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        token: str | None,
        api: str,
        now: Callable[[], float],
        cache: CACHE_TYPE | None = None,
    ) -> None:
        """``api`` is e.g. ``https://api.github.com``; a ``ValueError`` if it is not protected on its way.

        ``now`` gives seconds since the epoch. With a ``cache``, what has not changed since is not sent again.
        """
        self._origin = _origin(urlsplit(api))
        if self._origin[0] != "https" and not is_loopback(self._origin[1]):
            raise ValueError("GitHub's API must be https://: it is told a token, and believed")
        super().__init__(f"hookdeploy/{__version__}", oauth_token=token, base_url=api, cache=cache)
        self._reactor = reactor
        self._now = now
        pool = HTTPConnectionPool(reactor, persistent=False)
        pool._factory = _Quiet  # noqa: SLF001 - there is no other way to have it quiet
        self._http = HTTPClient(Agent(reactor, connectTimeout=TIMEOUT, pool=pool))
        self._redactor = Redactor([token] if token else [])
        self._quiet_until = 0.0

    @property
    def host(self) -> str:
        return self._origin[1]

    @contextmanager
    def in_words(self, *, needs: str = "") -> Iterator[None]:
        """Within it, what GitHub refuses or what cannot be understood raises ``ForgeFailed``.

        ``needs`` is what the token must be allowed, as GitHub's settings call it.
        """
        try:
            yield
        except HTTPException as refusal:
            raise ForgeFailed(self._refusal(refusal, needs)) from None
        except _NOT_UNDERSTOOD:
            # Without the cause, whose text may hold a part of the answer.
            raise ForgeFailed(f"{self.host} gives an answer that cannot be understood") from None

    async def sleep(self, seconds: float) -> None:
        await deferLater(self._reactor, seconds)

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        if _origin(urlsplit(url)) != self._origin:
            raise ForgeFailed(f"{self.host} refers to another address, which is not asked")
        if self._now() < self._quiet_until:
            until = datetime.fromtimestamp(self._quiet_until, UTC)
            raise ForgeFailed(f"{self.host} does not want to be asked again before {until:%H:%M:%S} UTC")
        asking = Deferred.fromCoroutine(self._exchange(method, url, headers, body))
        asking.addTimeout(TIMEOUT, self._reactor)
        try:
            status, received, content = await asking
        except DeferredTimeout:
            raise ForgeFailed(f"{self.host} has not answered within {TIMEOUT:g} s") from None
        self._quiet_until = quiet_until(status, received, self._now())
        return status, received, content

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            return await self._spoken(method, url, headers, body)
        except (CancelledError, ForgeFailed):
            raise
        except Exception as error:  # noqa: BLE001 - what keeps a request from its answer has no class in common
            cause = _cause(error)
            if isinstance(cause, (CancelledError, ConnectingCancelledError)):
                raise CancelledError from None
            raise ForgeFailed(f"{self.host} cannot be asked: {self._shown(str(cause))}") from None

    async def _spoken(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        # Its length is the transport's to say: one that is said twice is a malformed request.
        said = {name: [value] for name, value in headers.items() if name != "content-length"}
        response = await self._http.request(
            method,
            url,
            headers=Headers({**said, "x-github-api-version": [VERSION]}),
            data=body or None,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,  # type: ignore[arg-type]  # treq joins zope's interfaces in another way
        )
        received = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        collecting = _Body(LARGEST_ANSWER, self.host)
        response.original.deliverBody(collecting)
        return response.code, received, await collecting.whole

    def _refusal(self, refusal: HTTPException, needs: str) -> str:
        status = refusal.status_code
        said = f"{self.host} answers {status.value} {status.phrase}"
        text = self._shown(str(refusal))
        if text and text != status.phrase:
            said += f" ({text})"
        if isinstance(refusal, RedirectionException):
            said += "; has it moved, or been renamed?"
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND} and needs:
            said += f"; the token needs {needs}"
        return said

    def _shown(self, text: str) -> str:
        """What was said out there, as one short line without the token."""
        return " ".join(self._redactor.text(text).split())[:200]


class _Quiet(_HTTP11ClientFactory):
    """Twisted's own writes two lines into the log for each connection."""

    noisy = False


class _Body(Protocol):
    """Collects an answer's body up to a limit. Whoever cancels ``whole`` closes the connection."""

    transport: ITransport

    def __init__(self, most: int, host: str) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self.transport.loseConnection())
        self._most = most
        self._host = host
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._most:
            self._data.clear()
            self.transport.loseConnection()
            self._end(Failure(ForgeFailed(f"{self._host} gives an answer of more than {self._most} bytes")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        complete = reason.check(ResponseDone, PotentialDataLoss) is not None
        self._end(bytes(self._data) if complete else reason)

    def _end(self, outcome: bytes | Failure) -> None:
        if not self.whole.called:
            self.whole.callback(outcome)


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    return url.scheme, url.hostname or "", url.port or {"https": 443, "http": 80}.get(url.scheme)


def _cause(error: Exception) -> BaseException | None:
    """What has kept a request from its answer; Twisted's web client wraps that into a list of failures."""
    reasons: list[Failure] = getattr(error, "reasons", [])
    return reasons[0].value if reasons else error
