"""What is asked of GitHub, over real sockets from something that answers as GitHub does, or as nobody should."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet import ssl
from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint, ITCPTransport
from twisted.internet.tcp import Client
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.fakes import MemoryJournal
from tests.githubapi import NOW, attempt, webhook
from tests.waiting import become
from twisted_hook import __version__
from twisted_hook.config import AppConfig, Config, HookConfig, ServerConfig
from twisted_hook.githubrest import LARGEST_ANSWER, api_of
from twisted_hook.model import FailedDelivery, ForgeFailed
from twisted_hook.outward import github as client
from twisted_hook.outward.github import LONGEST_PAUSE, GitHub, quiet_until
from twisted_hook.outward.redeliveries import Attempt, GitHubWebhook, leads_to, never_taken, webhooks_of
from twisted_hook.process import Reactor
from twisted_hook.redelivery import Redelivery

REACTOR = cast("Reactor", global_reactor)
TOKEN = "github_pat_11ABCDEFG0canary"
DAY = 86_400.0
ANSWERS_ODDLY = Callable[[Request], object]


# --- a GitHub of our own


class LocalGitHub(Resource):
    """Lists webhooks and attempts page by page, and takes orders; or answers as ``instead`` does."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def __init__(self) -> None:
        super().__init__()
        self.webhooks = [webhook(1, "https://deploy.example.com/hooks/github")]
        self.attempts: list[dict[str, object]] = []
        """The newest first."""
        self.largest_page = 100
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.instead: ANSWERS_ODDLY | None = None
        self.api = ""

    def render(self, request: Request) -> object:
        headers = {
            name.decode().lower(): values[0].decode() for name, values in request.requestHeaders.getAllRawHeaders()
        }
        self.requests.append((request.method.decode(), request.uri.decode(), headers))
        request.setHeader("content-type", "application/json; charset=utf-8")
        if self.instead is not None:
            return self.instead(request)
        match request.method, request.path.decode().split("/")[2:]:
            case b"GET", ["acme", "blog", "hooks"] | ["1296269", "hooks"]:
                return self._page(request, self.webhooks)
            case b"GET", [*_, "hooks", "1", "deliveries"]:
                return self._page(request, self.attempts)
            case b"POST", ["acme", "blog", "hooks", "1", "deliveries", _, "attempts"]:
                request.setResponseCode(202)
                return b"{}"
        return refusing(404, "Not Found")(request)

    def _page(self, request: Request, items: list[dict[str, object]]) -> bytes:
        size = min(int(request.args.get(b"per_page", [b"30"])[0]), self.largest_page)
        first = int(request.args.get(b"cursor", [b"v1_0"])[0].removeprefix(b"v1_"))
        if first + size < len(items):
            # GitHub's own links name the repository by its number.
            path = request.path.decode().replace("/repos/acme/blog", "/repositories/1296269")
            there = f"{self.api}{path}?per_page={size}&cursor=v1_{first + size}"
            request.setHeader("link", f'<{there}>; rel="next"')
        return json.dumps(items[first : first + size]).encode()

    def asked(self, method: str) -> list[str]:
        return [uri for said, uri, _ in self.requests if said == method]


def refusing(status: int, message: str, **headers: str) -> ANSWERS_ODDLY:
    """An answer as GitHub gives it when it does not do what it is asked."""

    def answer(request: Request) -> bytes:
        request.setResponseCode(status)
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-"), value)
        return json.dumps({"message": message, "documentation_url": "https://docs.github.com/rest"}).encode()

    return answer


def saying(body: bytes, **headers: str) -> ANSWERS_ODDLY:
    """An answer of 200."""

    def answer(request: Request) -> bytes:
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-"), value)
        return body

    return answer


@asynccontextmanager
async def local_github(endpoint: IStreamServerEndpoint | None = None) -> AsyncIterator[LocalGitHub]:
    """One that listens; at the end nobody is connected to it, or the test fails."""
    there = LocalGitHub()
    factory = WrappingFactory(Site(there))
    port = await (endpoint or TCP4ServerEndpoint(REACTOR, 0, interface="127.0.0.1")).listen(factory)
    there.api = f"http://127.0.0.1:{cast('IPv4Address', port.getHost()).port}"
    try:
        yield there
    finally:
        await maybeDeferred(port.stopListening)
        await become(lambda: not factory.protocols and not clients())


def clients() -> list[Client]:
    """The connections from here, those that are being closed too."""
    return [each for each in (*REACTOR.getReaders(), *REACTOR.getWriters()) if isinstance(each, Client)]


def asking(there: LocalGitHub, *, public_url: str | None = None, now: Callable[[], float] = time.time) -> GitHubWebhook:
    github = GitHub(REACTOR, token=TOKEN, api=there.api, now=now)
    where = {"hook": "github", "path": "/hooks/github", "owner": "acme", "repository": "blog"}
    return GitHubWebhook(github, **where, public_url=public_url)


async def why_not(webhook: GitHubWebhook) -> str:
    """In which words it fails."""
    with pytest.raises(ForgeFailed) as failed:
        await webhook.failed(NOW - DAY)
    assert TOKEN not in "".join(traceback.format_exception(failed.value))
    return str(failed.value)


@pytest.fixture(autouse=True)
def no_token_in_the_log() -> Iterator[None]:
    """In no event of any level, as it is formatted and with its traceback."""
    with capturedLogs() as events:
        yield
    assert not [event for event in events if TOKEN in told(event)]


def ours(events: Iterable[LogEvent]) -> list[str]:
    return [told(event) for event in events if event["log_namespace"].startswith("twisted_hook")]


def told(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return f"{formatEvent(event)} {failure.getTraceback() if failure else ''}"


# --- as it should be


@pytest_twisted.ensureDeferred
async def test_what_failed_is_found_on_every_page() -> None:
    async with local_github() as there:
        there.largest_page = 2
        there.attempts = [
            attempt(7, "late", code=0, at=NOW - 60),
            attempt(6, "again", code=503, at=NOW - 3600, redelivery=True),
            attempt(5, "healed", code=202, at=NOW - 3700, redelivery=True),
            attempt(4, "ping", event="ping", at=NOW - 4000),
            attempt(3, "healed", at=NOW - 5000),
            attempt(2, "again", code=0, at=NOW - 6000),
            attempt(1, "old", at=NOW - 2 * DAY),
        ]
        failed = await asking(there).failed(NOW - DAY)
        assert failed == [
            FailedDelivery("again", "1/deliveries/6", NOW - 3600),
            FailedDelivery("late", "1/deliveries/7", NOW - 60),
        ]
        assert there.asked("GET") == [
            "/repos/acme/blog/hooks?per_page=100",
            "/repos/acme/blog/hooks/1/deliveries?per_page=100",
            *(f"/repositories/1296269/hooks/1/deliveries?per_page=2&cursor=v1_{first}" for first in (2, 4, 6)),
        ]


@pytest_twisted.ensureDeferred
async def test_pages_from_before_are_not_asked_for() -> None:
    async with local_github() as there:
        there.largest_page = 1
        there.attempts = [attempt(number, f"g{number}", at=NOW - (9 - number) * DAY) for number in range(9, 0, -1)]
        assert len(await asking(there).failed(NOW - DAY * 1.5)) == 2
        assert len(there.asked("GET")) == 4


@pytest_twisted.ensureDeferred
async def test_a_failed_delivery_is_asked_for() -> None:
    async with local_github() as there:
        there.attempts = [attempt(12077215967, "one")]
        webhook_of_ours = asking(there)
        (failed,) = await webhook_of_ours.failed(NOW - DAY)
        await webhook_of_ours.ask_again(failed)
        assert there.asked("POST") == ["/repos/acme/blog/hooks/1/deliveries/12077215967/attempts"]


@pytest_twisted.ensureDeferred
async def test_it_says_who_asks_and_by_which_right() -> None:
    async with local_github() as there:
        webhook_of_ours = asking(there)
        await webhook_of_ours.failed(NOW)
        await webhook_of_ours.ask_again(FailedDelivery("one", "1/deliveries/2", NOW))
        for _method, _uri, headers in there.requests:
            assert headers["authorization"] == f"token {TOKEN}"
            assert headers["user-agent"] == f"hookdeploy/{__version__}"
            assert headers["accept"].startswith("application/vnd.github")
            assert headers["x-github-api-version"] == "2022-11-28"
        assert there.requests[-1][2]["content-length"] == "0"


# --- which webhook is ours


@pytest_twisted.ensureDeferred
async def test_a_repository_without_our_webhook_is_told() -> None:
    async with local_github() as there:
        there.webhooks = [webhook(1, "https://ci.example.com/github")]
        assert await why_not(asking(there)) == "none of the 1 webhooks of acme/blog delivers to …/hooks/github"


@pytest_twisted.ensureDeferred
async def test_the_public_address_tells_two_webhooks_apart() -> None:
    async with local_github() as there:
        there.webhooks.insert(0, webhook(2, "https://staging.example.com/hooks/github"))
        assert await why_not(asking(there)) == (
            "2 webhooks of acme/blog deliver to …/hooks/github; say in server.public_url which address is ours"
        )
        await asking(there, public_url="https://deploy.example.com").failed(NOW)
        assert there.asked("GET")[-1] == "/repos/acme/blog/hooks/1/deliveries?per_page=100"
        there.webhooks = there.webhooks[:1]
        assert "delivers to https://deploy.example.com/hooks/github" in await why_not(
            asking(there, public_url="https://deploy.example.com")
        )


# --- as it should not be (T44)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            refusing(401, "Bad credentials"),
            "answers 401 Unauthorized (Bad credentials); the token needs the repository",
        ),
        (refusing(404, "Not Found"), "answers 404 Not Found; the token needs the repository permission"),
        (refusing(403, f"Not with {TOKEN}\x1b[31m"), "answers 403 Forbidden (Not with [secret]); the token needs"),
        (refusing(500, "oops"), "answers 500 Internal Server Error (oops)"),
        (refusing(422, "Validation Failed"), "answers 422"),
        (
            refusing(301, "Moved Permanently", location="/elsewhere"),
            "answers 301 Moved Permanently; has it moved, or been renamed?",
        ),
        (refusing(307, "Temporary Redirect", location="http://127.0.0.1:1/"), "answers 307 Temporary Redirect"),
        (refusing(299, "a status that Python does not know"), "cannot be understood"),
        (saying(b"{garbage"), "cannot be understood"),
        (saying(b"[" * 100_000), "cannot be understood"),
        (saying(b"\xff\xfe[]"), "cannot be understood"),
        (saying(b"[]", content_type="application/json; charset=nonsense"), "cannot be understood"),
        (saying(b"[]", x_ratelimit_limit=TOKEN, x_ratelimit_remaining="x", x_ratelimit_reset="x"), "be understood"),
        (saying(b"null"), "cannot be understood"),
        (saying(b"42"), "cannot be understood"),
        (saying(b"[42]"), "cannot be understood"),
        (saying(b'[{"id": "1", "config": {}}]'), "cannot be understood"),
        (saying(b"<html>", content_type="text/html"), "cannot be understood"),
        (saying(b"[" + b" " * LARGEST_ANSWER + b"]"), "gives an answer of more than 1048576 bytes"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_answer_is_more_than_a_line_of_words(answer: ANSWERS_ODDLY, words: str) -> None:
    async with local_github() as there:
        there.instead = answer
        said = await why_not(asking(there))
        assert words in said
        assert said.isprintable()
        assert len(there.requests) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"guid": None},
        {"guid": "line\nline"},
        {"id": "1/../../../user"},
        {"delivered_at": "yesterday"},
        {"delivered_at": "2026-06-03T00:57:16"},
        {"status_code": "no"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_attempt_that_is_not_as_documented_is_not_asked_for(odd: dict[str, object]) -> None:
    async with local_github() as there:
        there.attempts = [attempt(1, "one") | odd]
        assert "cannot be understood" in await why_not(asking(there))


@pytest_twisted.ensureDeferred
async def test_an_answer_without_an_end_is_cut_off() -> None:
    def answer(request: Request) -> int:
        def pour() -> None:
            if not lost:
                request.write(b" " * 65536)
                REACTOR.callLater(0, pour)

        lost: list[object] = []
        request.notifyFinish().addErrback(lost.append)
        pour()
        return NOT_DONE_YET

    async with local_github() as there:
        there.instead = answer
        assert "gives an answer of more than 1048576 bytes" in await why_not(asking(there))


def silent(request: Request) -> int:
    request.notifyFinish().addErrback(lambda _: None)
    return NOT_DONE_YET


def half_said(request: Request) -> int:
    request.write(b"[")
    return silent(request)


@pytest.mark.parametrize("answer", [silent, half_said])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_does_not_come_is_given_up(answer: ANSWERS_ODDLY, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    async with local_github() as there:
        there.instead = answer
        assert "127.0.0.1 has not answered within 0.2 s" in await why_not(asking(there))


@pytest.mark.parametrize("answer", [silent, half_said])
@pytest_twisted.ensureDeferred
async def test_stopping_lets_go_of_the_connection(answer: ANSWERS_ODDLY) -> None:
    async with local_github() as there:
        there.instead = answer
        redelivery = Redelivery(REACTOR, MemoryJournal(), lambda: [asking(there), asking(there)], now=time.time)
        with capturedLogs() as events:
            redelivery.start()
            await become(lambda: bool(there.requests))
            await redelivery.stop()
        assert ours(events) == []
        assert len(there.requests) == 1


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    there = LocalGitHub()
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        there.api = f"http://127.0.0.1:{full.getsockname()[1]}"
        # Linux drops what comes when nobody accepts and the queue, of one more than the backlog, is full.
        sockets.enter_context(socket.create_connection(full.getsockname()))
        assert "127.0.0.1 has not answered within 0.2 s" in await why_not(asking(there))


@pytest_twisted.ensureDeferred
async def test_a_closed_port_and_a_broken_answer_are_told() -> None:
    def hang_up(request: Request) -> int:
        cast("ITCPTransport", request.transport).abortConnection()
        return NOT_DONE_YET

    async with local_github() as there:
        there.instead = hang_up
        assert "127.0.0.1 cannot be asked: Connection to the other side was lost" in await why_not(asking(there))
    with socket.socket() as nobody_listens:  # and nobody else may take its port
        nobody_listens.bind(("127.0.0.1", 0))
        there.api = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        assert "127.0.0.1 cannot be asked: Connection was refused" in await why_not(asking(there))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Twisted's way to make a certificate
@pytest_twisted.ensureDeferred
async def test_a_certificate_that_nobody_vouches_for_gets_no_token(logged_failures: list[LogEvent]) -> None:
    certificate = ssl.KeyPair.generate(size=2048).selfSignedCert(1, CN="localhost").options()
    async with local_github(SSL4ServerEndpoint(REACTOR, 0, certificate, interface="127.0.0.1")) as there:
        there.api = there.api.replace("http://127.0.0.1", "https://localhost")
        said = await why_not(asking(there))
        assert said.startswith("localhost cannot be asked: ")
        assert "certificate verify failed" in said
        assert there.requests == []
    logged_failures.clear()  # Twisted's own, of a certificate as old-fashioned as the one that it makes


@pytest_twisted.ensureDeferred
async def test_a_next_page_elsewhere_is_not_asked_for() -> None:
    """It would be given the token."""
    async with local_github() as there, local_github() as elsewhere:
        there.instead = saying(b"[]", link=f'<{elsewhere.api}/repos/acme/blog/hooks>; rel="next"')
        assert await why_not(asking(there)) == "127.0.0.1 refers to another address, which is not asked"
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (refusing(403, "You have exceeded a secondary rate limit", retry_after="120"), 120),
        (refusing(429, "Too many requests"), 60),
        (
            refusing(
                403,
                "API rate limit exceeded for user ID 1.",
                x_ratelimit_limit="5000",
                x_ratelimit_remaining="0",
                x_ratelimit_reset=f"{NOW + 900:.0f}",
            ),
            900,
        ),
        (
            saying(
                b"[]",
                x_ratelimit_limit="5000",
                x_ratelimit_remaining="0",
                x_ratelimit_reset=f"{NOW + 900:.0f}",
            ),
            900,
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_limit_is_obeyed(answer: ANSWERS_ODDLY, pause: float) -> None:
    now = NOW
    async with local_github() as there:
        there.instead = answer
        webhook_of_ours = asking(there, now=lambda: now)
        await why_not(webhook_of_ours)
        there.instead = None
        now = NOW + pause - 1
        assert "does not want to be asked again before" in await why_not(webhook_of_ours)
        assert len(there.requests) == 1
        now = NOW + pause
        await webhook_of_ours.failed(NOW)
        assert len(there.requests) == 3


# --- all together


def config(api: str, *apps: AppConfig, public_url: str | None = None) -> Config:
    hook = HookConfig("github", "/hooks/github", "github", (), api=api or None)
    deployed = MappingProxyType({app.name: app for app in apps or (BLOG,)})
    return Config(Path("/nowhere"), ServerConfig(public_url=public_url), (hook,), deployed)


BLOG = AppConfig(name="blog", hook="github", repository="https://github.com/acme/blog.git", names=("acme/blog",))


async def one_look(journal: MemoryJournal, sources: Sequence[GitHubWebhook]) -> None:
    """From a start to a stop."""
    redelivery = Redelivery(REACTOR, journal, lambda: sources, now=time.time)
    redelivery.start()
    await become(lambda: redelivery._rounds._round is None)
    await redelivery.stop()


@pytest_twisted.ensureDeferred
async def test_what_github_could_not_deliver_is_asked_for_once() -> None:
    async with local_github() as there:
        there.attempts = [attempt(2, "two", at=time.time()), attempt(1, "one", code=202, at=time.time())]
        sources = webhooks_of(config(there.api), {"github": TOKEN}, REACTOR, now=time.time)
        journal = MemoryJournal()
        await one_look(journal, sources)
        await one_look(journal, sources)
        assert len(there.asked("GET")) == 4
        assert there.asked("POST") == ["/repos/acme/blog/hooks/1/deliveries/2/attempts"]


@pytest_twisted.ensureDeferred
async def test_a_github_that_refuses_is_one_line_in_the_log() -> None:
    async with local_github() as there:
        there.instead = refusing(401, f"Bad credentials {TOKEN}")
        sources = webhooks_of(config(there.api), {"github": TOKEN}, REACTOR, now=time.time)
        with capturedLogs() as events:
            await one_look(MemoryJournal(), sources)
        (said,) = ours(events)
        assert "twisted.web.client" not in {event["log_namespace"].rpartition(".")[0] for event in events}
        assert "the webhook of acme/blog at 127.0.0.1: what it could not deliver is not asked for" in said
        assert "401 Unauthorized (Bad credentials [secret])" in said


# --- what needs no socket


class TheAddressOfTheAPI(SynchronousTestCase):
    """By the host from which git fetches."""

    def test_it_is_known_by_the_host(self) -> None:
        for host, api in (
            ("github.com", "https://api.github.com"),
            ("ssh.github.com", "https://api.github.com"),
            ("", "https://api.github.com"),
            ("acme.ghe.com", "https://api.acme.ghe.com"),
            ("github.example.com", "https://github.example.com/api/v3"),
        ):
            self.assertEqual(api_of(host), api)

    def test_the_token_is_not_sent_in_the_clear(self) -> None:
        for api in ("http://github.example.com", "ftp://localhost.example.com", "http://127.0.0.1.example.com"):
            with self.assertRaises(ValueError):
                GitHub(REACTOR, token=TOKEN, api=api, now=time.time)
        for api in ("https://github.example.com/api/v3", "http://[::1]:8080", "http://localhost:8080"):
            GitHub(REACTOR, token=TOKEN, api=api, now=time.time)


class OurWebhooks(SynchronousTestCase):
    """Which are asked, by the configuration."""

    def words(self, config: Config, tokens: Mapping[str, str]) -> list[str]:
        return [each.words for each in webhooks_of(config, tokens, REACTOR, now=time.time)]

    def test_there_is_none_without_a_token(self) -> None:
        self.assertEqual(self.words(config(""), {}), [])

    def test_there_is_one_for_each_repository(self) -> None:
        shop = AppConfig(
            name="shop", hook="github", repository="git@github.example.com:acme/shop", names=("acme/shop",)
        )
        apps = (BLOG, replace(BLOG, name="admin", names=("Acme/Blog",)), shop, replace(BLOG, name="x", hook="other"))
        self.assertEqual(
            sorted(self.words(config("", *apps), {"github": TOKEN})),
            ["the webhook of Acme/Blog at api.github.com", "the webhook of acme/shop at github.example.com"],
        )

    def test_an_app_whose_repository_has_no_full_name_is_told_of(self) -> None:
        with capturedLogs() as events:
            apps = [replace(BLOG, name=f"app{place}", names=names) for place, names in enumerate([(), ("blog",)])]
            self.assertEqual(self.words(config("", *apps), {"github": TOKEN}), [])
        self.assertEqual(
            [formatEvent(event).partition(":")[0] for event in events], ["apps.app0.names", "apps.app1.names"]
        )

    def test_nobody_is_asked_about_a_repository_on_this_machine(self) -> None:
        """Who has the same name at GitHub is somebody else."""
        with capturedLogs() as events:
            apps = [replace(BLOG, name=url[:4], repository=url) for url in ("/srv/blog.git", "file:///srv/blog.git")]
            self.assertEqual(self.words(config("", *apps), {"github": TOKEN}), [])
        self.assertEqual(len(events), 2)
        self.assertEqual(len(self.words(config("http://localhost:1", *apps), {"github": TOKEN})), 1)

    def test_an_address_leads_to_us_by_its_path_or_if_we_know_ours_by_all_of_it(self) -> None:
        for url, public_url, ours in (
            ("https://deploy.example.com/hooks/github", None, True),
            ("https://example.com/deploy/hooks/github", None, True),
            ("https://deploy.example.com/hooks/github/", None, False),
            ("https://deploy.example.com/hooks/gitlab", None, False),
            ("https://Deploy.example.com:443/hooks/github", "https://deploy.example.com", True),
            ("http://deploy.example.com/hooks/github", "https://deploy.example.com", False),
            ("https://staging.example.com/hooks/github", "https://deploy.example.com", False),
            ("https://example.com/deploy/hooks/github", "https://example.com/deploy", True),
            ("", "https://example.com", False),
            ("https://example.com:99999/hooks/github", None, False),
            ("https://[/hooks/github", "https://example.com", False),
        ):
            self.assertEqual(leads_to(url, "/hooks/github", public_url), ours, (url, public_url))


class NeverTaken(SynchronousTestCase):
    """Which deliveries no attempt has brought."""

    def attempt(self, id: int, guid: str, *, status: str = "timed out", **other: Any) -> Attempt:
        return Attempt(id, guid, datetime.now(UTC), **{"event": "push", "status": status, **other})

    def test_they_are_told_once_each_the_oldest_first(self) -> None:
        attempts = [self.attempt(3, "b"), self.attempt(2, "a"), self.attempt(1, "b")]
        self.assertEqual([each.id for each in never_taken(attempts)], [2, 3])

    def test_one_that_was_taken_at_any_time_is_none(self) -> None:
        for good in ({"status": "OK"}, {"status": "Accepted", "status_code": 202}):
            for attempts in (
                [self.attempt(2, "a", **good), self.attempt(1, "a")],
                [self.attempt(2, "a"), self.attempt(1, "a", **good)],
            ):
                self.assertEqual(never_taken(attempts), [])

    def test_another_event_is_none(self) -> None:
        self.assertEqual(never_taken([self.attempt(1, "a", event="ping")]), [])

    def test_one_without_an_answer_has_no_status_code(self) -> None:
        self.assertEqual(len(never_taken([self.attempt(1, "a", status_code=None)])), 1)


class ALimit(SynchronousTestCase):
    """Before when GitHub does not want to be asked."""

    def test_it_is_read_from_the_answer(self) -> None:
        reset = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{NOW + 30:.0f}"}
        for status, headers, pause in (
            (200, {}, 0),
            (403, {}, 0),
            (429, {}, 60),
            (403, {"retry-after": "7"}, 7),
            (503, {"retry-after": "7"}, 7),
            (403, {**reset, "retry-after": "7"}, 7),
            (403, reset, 30),
            (200, reset, 30),
            (200, {**reset, "x-ratelimit-remaining": "1"}, 0),
            (200, {**reset, "x-ratelimit-reset": "0"}, 0),
            (200, {"x-ratelimit-remaining": "0"}, 0),
            (403, {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
            (403, {"retry-after": "9" * 400}, LONGEST_PAUSE),
        ):
            self.assertEqual(quiet_until(status, headers, NOW) - NOW, pause, (status, headers))
