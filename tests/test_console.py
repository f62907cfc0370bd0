"""The dashboard's port answers those who have the token, and never acts for somebody else's page."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent
from twisted.web.resource import IResource, Resource

from tests.fakes import MemoryJournal
from tests.steered import SteeredApp, api_of
from tests.wire import Answer, connect, head, listening
from twisted_hook.console import LIMITS, Console, explained, form_of
from twisted_hook.model import Refused
from twisted_hook.peers import Trust
from twisted_hook.sessions import LIFETIME, RENEWAL, Sessions
from twisted_hook.site import GuardedRequest, GuardedSite, Limits

TOKEN = "the-token-of-this-test-0123456789"
BEARER = {b"Authorization": f"Bearer {TOKEN}".encode()}
HTML = {b"Accept": b"text/html,*/*"}
FORM = {b"Content-Type": b"application/x-www-form-urlencoded"}
NOW = 1_800_000_000.0
NAME = Sessions(TOKEN).name
ACTIONS = (
    *(f"/api/v1/apps/web/{how}" for how in ("deploy", "rollback", "pin", "unpin", "pause", "resume")),
    "/api/v1/deployments/1/cancel",
    "/api/v1/deliveries/1/replay",
)
DATA = (
    *("/api/v1/apps", "/api/v1/apps/web", "/api/v1/deployments", "/api/v1/deployments/1/log", "/api/v1/deliveries"),
    *("/api/v1/deployments/1/log?follow=1", "/api/v1/events", "/api/v1/server", "/metrics", "/events", "/"),
)


class FewPages(Resource):
    """Pages that say who looks, and tell what was posted to them."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def screen(self, request: GuardedRequest) -> None:
        if request.path not in (b"/", b"/events", b"/say", b"/static/style.css"):
            raise Refused(404, "no such path")

    def resource(self) -> IResource:
        return self

    def login(self, request: GuardedRequest, *, wrong: bool) -> bytes:
        return b"wrong, again" if wrong else b"who?"

    def render_GET(self, request: GuardedRequest) -> bytes:
        return request.answer(b"a page" if request.visitor is None else request.visitor.csrf.encode(), b"text/html")

    def render_POST(self, request: GuardedRequest) -> bytes:
        return request.answer(json.dumps(dict(form_of(request))).encode())


class LenientPages(FewPages):
    """Pages at every path."""

    def screen(self, request: GuardedRequest) -> None:
        """None is refused."""


class Client:
    """A browser, or a program, of which each request has a connection of its own."""

    def __init__(self, port: int, console: Console, journal: MemoryJournal) -> None:
        self._port = port
        self.console = console
        self.journal = journal
        self.now = NOW

    async def ask(
        self, line: str, headers: Mapping[bytes, bytes] | None = None, body: bytes | None = None, *, raw: bytes = b""
    ) -> Answer:
        wire = await connect(self._port)
        sent = raw or head(line, headers, length=None if body is None else len(body))
        wire.send(sent, body or b"")
        answer = await wire.answer()
        await wire.close()
        return answer

    async def head(self, path: str) -> Answer:
        wire = await connect(self._port, bodiless=True)
        wire.send(head(f"HEAD {path}", HTML))
        answer = await wire.answer()
        await wire.close()
        assert not wire.received
        return answer

    async def log_in(self, headers: Mapping[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        """The cookie of a browser in which somebody has logged in."""
        answer = await self.ask(f"GET /login?token={TOKEN}", headers)
        return {b"Cookie": answer.headers["set-cookie"].partition(";")[0].encode()}


@asynccontextmanager
async def console(state: Path, limits: Limits = LIMITS) -> AsyncIterator[Client]:
    journal = MemoryJournal()
    api = api_of(journal, [SteeredApp(journal)], state)
    made = Console(api, TOKEN, now=lambda: client.now, hosts=lambda: {"deploy.example.com"})
    made.show(FewPages())
    site = GuardedSite(made.resource(), screen=made.screen, reactor=reactor, limits=limits, says=explained)
    async with listening(site) as port:
        client = Client(port, made, journal)
        yield client


# --- who is let in


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", DATA)
async def test_nothing_is_told_to_a_stranger(tmp_path: Path, path: str) -> None:
    """P89: no login, no data, events included."""
    async with console(tmp_path) as client:
        for headers in ({}, {b"Authorization": b"Bearer x"}, {b"Cookie": NAME.encode() + b"=x"}, HTML):
            answer = await client.ask(f"GET {path}", headers)
            assert answer.status == 401
            assert answer.body in (b"who?", b'{"error":"no token and no session"}', b'{"error":"a wrong token"}')


@pytest_twisted.ensureDeferred
async def test_the_token_opens_everything(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        assert json.loads((await client.ask("GET /api/v1/apps", BEARER)).body)[0]["name"] == "web"
        assert (await client.ask("GET /", BEARER)).body == b"a page"
        assert (await client.ask("POST /api/v1/apps/web/deploy", BEARER, b"")).status == 202
        assert (
            await client.ask("POST /api/v1/apps/web/pin", {**BEARER, b"Sec-Fetch-Site": b"none"}, b"")
        ).status == 200


@pytest_twisted.ensureDeferred
async def test_the_scheme_of_the_token_may_be_written_in_any_case(tmp_path: Path) -> None:
    """RFC 9110, 11.1 and 11.4: and more than one space may follow it."""
    async with console(tmp_path) as client:
        for given, status in (
            (f"bearer {TOKEN}", 200),
            (f"BEARER  {TOKEN}", 200),
            (f"Bearer {TOKEN.swapcase()}", 401),
            (f"Bearer{TOKEN}", 401),
            (f"Basic {TOKEN}", 401),
            (TOKEN, 401),
            ("Bearer", 401),
        ):
            answer = await client.ask("GET /api/v1/apps", {b"Authorization": given.encode()})
            assert answer.status == status, given


@pytest_twisted.ensureDeferred
async def test_a_stranger_may_have_the_way_in_and_its_paint(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        assert (await client.ask("GET /login")).body == b"who?"
        assert (await client.ask("GET /static/style.css")).status == 200
        for path in ("/static/../", "/static/..%2fapi/v1/apps", "/%61pi/v1/apps", "//api/v1/apps"):
            assert (await client.ask(f"GET {path}")).status == 404


@pytest_twisted.ensureDeferred
async def test_a_path_has_one_spelling(tmp_path: Path) -> None:
    """A page at ``//host/`` would lead a browser elsewhere with each address of its own path."""
    async with console(tmp_path) as client:
        client.console.show(LenientPages())
        assert (await client.ask("GET /x", BEARER)).status == 200
        for path in ("//x", "//evil.example/x", "/x//y", "http://evil.example/x", "*"):
            assert (await client.ask(f"GET {path}", BEARER)).status == 404, path


@pytest_twisted.ensureDeferred
async def test_no_stranger_fills_the_log_by_asking_for_heads(tmp_path: Path) -> None:
    with capturedLogs() as events:
        async with console(tmp_path) as client:
            asked = {path: await client.head(path) for path in ("/login", "/login?token=x", "/")}
    assert [answer.status for answer in asked.values()] == [200, 401, 401]
    assert asked["/login"].headers["content-length"] == str(len(b"who?"))
    assert [event for event in events if "HEAD" in formatEvent(event)] == []


@pytest_twisted.ensureDeferred
async def test_a_page_asks_a_stranger_for_the_token(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        answer = await client.ask("GET /", HTML)
        assert (answer.status, answer.body) == (401, b"who?")
        # Who follows a link from elsewhere has a cookie, which the browser sends only when our own page asks.
        elsewhere = {**HTML, b"Sec-Fetch-Site": b"cross-site", b"Sec-Fetch-Mode": b"navigate"}
        answer = await client.ask("GET /", elsewhere)
        assert answer.status == 401
        assert b'http-equiv="refresh"' in answer.body


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("by_form", [False, True])
async def test_a_login_is_a_cookie_and_leaves_the_address(tmp_path: Path, by_form: bool) -> None:
    """T41."""
    async with console(tmp_path) as client:
        body = f"token={TOKEN}".encode()
        answer = await (client.ask("POST /login", FORM, body) if by_form else client.ask(f"GET /login?token={TOKEN}"))
        assert (answer.status, answer.headers["location"]) == (303, "/")
        cookie, *attributes = answer.headers["set-cookie"].split("; ")
        assert cookie.startswith(f"{NAME}=")
        assert attributes == [f"Max-Age={LIFETIME}", "Path=/", "HttpOnly", "SameSite=Strict"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        logged_in = {b"Cookie": b"other=1; " + cookie.encode()}
        assert len((await client.ask("GET /", logged_in)).body) == 64
        assert (await client.ask("GET /api/v1/apps", logged_in)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_wrong_token_is_told_so_and_is_no_login(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        for line, body in (("GET /login?token=x", None), ("POST /login", b"token=x"), ("POST /login", b"token=")):
            answer = await client.ask(line, FORM, body)
            assert (answer.status, answer.body) == (401, b"wrong, again")
            assert "set-cookie" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_who_guesses_tokens_is_held_up(tmp_path: Path) -> None:
    """T41: brute force."""
    async with console(tmp_path) as client:
        statuses = [(await client.ask("GET /login?token=x")).status for _ in range(60)]
        assert statuses[:50] == [401] * 50
        answer = await client.ask("GET /api/v1/apps", {b"Authorization": b"Bearer x"})
        assert (answer.status, "retry-after" in answer.headers) == (429, True)


@pytest_twisted.ensureDeferred
async def test_over_tls_the_cookie_is_for_tls_alone(tmp_path: Path) -> None:
    """T41: also where a trusted proxy speaks TLS for us, and where nobody trusted says so it is not."""
    told = {b"X-Forwarded-Proto": b"https"}
    async with console(tmp_path, Limits(trusted=Trust.in_words(["127.0.0.1/32"]))) as client:
        cookie = (await client.ask(f"GET /login?token={TOKEN}", told)).headers["set-cookie"]
        assert cookie.startswith(f"__Host-{NAME}=")
        assert cookie.endswith("; Secure")
        logged_in = {b"Cookie": cookie.partition(";")[0].encode()}
        assert (await client.ask("GET /api/v1/apps", {**logged_in, **told})).status == 200
        assert (await client.ask("GET /api/v1/apps", logged_in)).status == 401
    async with console(tmp_path) as client:
        assert "Secure" not in (await client.ask(f"GET /login?token={TOKEN}", told)).headers["set-cookie"]


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_that_says_nothing_of_tls_the_browser_does(tmp_path: Path) -> None:
    """T41: so it is behind one that passes connections on and speaks the PROXY protocol."""
    told = {b"Sec-Fetch-Site": b"same-origin"}
    async with console(tmp_path) as client:
        cookie = (await client.ask(f"GET /login?token={TOKEN}", told)).headers["set-cookie"]
        assert cookie.startswith(f"__Host-{NAME}=")
        assert cookie.endswith("; Secure")
        logged_in = {b"Cookie": cookie.partition(";")[0].encode()}
        assert (await client.ask("GET /api/v1/apps", {**logged_in, **told})).status == 200


@pytest_twisted.ensureDeferred
async def test_on_this_machine_the_cookie_needs_no_tls(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        for host in ("127.0.0.1:8001", "localhost:8001"):
            line = f"GET /login?token={TOKEN} HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: none\r\n\r\n"
            assert "Secure" not in (await client.ask("", raw=line.encode())).headers["set-cookie"]


@pytest_twisted.ensureDeferred
async def test_a_session_goes_on_while_it_is_used_and_ends_otherwise(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        logged_in = await client.log_in()
        assert "set-cookie" not in (await client.ask("GET /", logged_in)).headers
        client.now += RENEWAL
        renewed = (await client.ask("GET /", logged_in)).headers["set-cookie"].partition(";")[0].encode()
        client.now += LIFETIME - RENEWAL
        assert (await client.ask("GET /", logged_in)).status == 401
        assert (await client.ask("GET /", {b"Cookie": renewed})).status == 200


@pytest_twisted.ensureDeferred
async def test_another_token_ends_every_session(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        logged_in = await client.log_in()
        client.console.admit("another-token-0123456789")
        assert (await client.ask("GET /", logged_in)).status == 401
        assert (await client.ask("GET /", BEARER)).status == 401


@pytest_twisted.ensureDeferred
async def test_who_logs_out_has_no_cookie_any_more(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        logged_in = await client.log_in()
        csrf = (await client.ask("GET /", logged_in)).body
        assert (await client.ask("POST /logout", {**logged_in, **FORM}, b"")).status == 403
        answer = await client.ask("POST /logout", {**logged_in, **FORM}, b"csrf=" + csrf)
        assert (answer.status, answer.headers["location"]) == (303, "/login")
        assert f"{NAME}=; Max-Age=0;" in answer.headers["set-cookie"]


# --- who may change something


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ACTIONS)
async def test_nothing_is_done_for_a_stranger_or_a_page_from_elsewhere(tmp_path: Path, path: str) -> None:
    """P89, T40."""
    async with console(tmp_path) as client:
        logged_in = await client.log_in()
        csrf = {b"X-CSRF-Token": (await client.ask("GET /", logged_in)).body}
        evil = {b"Origin": b"https://evil.example"}
        for headers, status in (
            ({}, 401),
            (evil, 403),
            (logged_in, 403),
            ({**logged_in, b"X-CSRF-Token": b"x"}, 403),
            ({**logged_in, **csrf, **evil}, 403),
            ({**logged_in, **csrf, b"Origin": b"null"}, 403),
            ({**logged_in, **csrf, b"Sec-Fetch-Site": b"cross-site"}, 403),
            ({**logged_in, **csrf, b"Sec-Fetch-Site": b"same-site"}, 403),
            ({**BEARER, **evil}, 403),
        ):
            assert (await client.ask(f"POST {path}", headers, b"")).status == status
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            assert (await client.ask(f"{method} {path}", BEARER, raw=_bodiless(method, path))).status == 405
        assert await client.journal.deployments() == []


def _bodiless(method: str, path: str) -> bytes:
    """Answers to HEAD announce a body that never comes, so that the connection has to end."""
    return (
        head(f"{method} {path}", {**BEARER, b"Connection": b"close"})
        if method != "HEAD"
        else head(f"GET {path}", BEARER)
    )


@pytest_twisted.ensureDeferred
async def test_our_own_page_may_change_something(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        logged_in = await client.log_in()
        csrf = (await client.ask("GET /", logged_in)).body
        ours = {**logged_in, b"X-CSRF-Token": csrf, b"Origin": b"https://deploy.example.com"}
        assert (await client.ask("POST /api/v1/apps/web/deploy", ours, b"")).status == 202
        browser = {b"Sec-Fetch-Site": b"same-origin"}
        browser |= await client.log_in(browser)
        csrf = (await client.ask("GET /", browser)).body
        posted = b"csrf=%b&what=a+b&what=c" % csrf
        answer = await client.ask("POST /say", {**browser, **FORM}, posted)
        assert json.loads(answer.body) == {"csrf": csrf.decode(), "what": "a b"}


@pytest_twisted.ensureDeferred
async def test_a_form_of_very_many_fields_is_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        answer = await client.ask("POST /login", FORM, b"&".join(b"a=1" for _ in range(100)))
        assert answer.status == 400
        assert (await client.ask("POST /login", FORM, b"token=" + b"x" * 70_000)).status == 413


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """T40: a page whose name points here for a moment."""
    async with console(tmp_path) as client:
        for host, status in (
            ("deploy.example.com", 200),
            ("DEPLOY.example.com:8001", 200),
            ("localhost:8001", 200),
            ("web.localhost", 200),
            ("127.0.0.1:8001", 200),
            ("[::1]:8001", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("", 403),
        ):
            raw = f"GET / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            assert (await client.ask("", raw=raw)).status == status, host
        assert (await client.ask("", raw=b"GET / HTTP/1.0\r\n\r\n")).status == 403


@pytest_twisted.ensureDeferred
async def test_every_answer_tells_the_browser_to_be_careful(tmp_path: Path) -> None:
    """P88."""
    async with console(tmp_path) as client:
        for line, headers in (
            ("GET /", BEARER),
            ("GET /", HTML),
            ("GET /", {}),
            ("GET /nowhere", BEARER),
            ("GET /login", {}),
            (f"GET /login?token={TOKEN}", {}),
            ("GET /api/v1/apps", BEARER),
            ("GET /api/v1/apps/none", BEARER),
        ):
            told = (await client.ask(line, headers)).headers
            policy = told["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe-inline" not in policy
            assert (told["x-content-type-options"], told["referrer-policy"]) == ("nosniff", "no-referrer")
            assert told["cache-control"] == "no-store"
