"""The dashboard over a real socket, behind the real console: who may see it, what its forms do, what it tells live."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.dashboards import NOW, Shown, lived_in
from tests.steered import api_of
from tests.waiting import become
from tests.wire import Answer, Wire, connect, head, listening
from twisted_hook.changes import Kind
from twisted_hook.console import LIMITS, Console, explained
from twisted_hook.model import JournalUnavailable, Outcome, Phase, Trigger
from twisted_hook.site import GuardedSite

TOKEN = "t" * 43
FORM = {b"Content-Type": b"application/x-www-form-urlencoded"}
HTML = {b"Accept": b"text/html"}


class Browser:
    """Somebody who has logged in, with a connection for each request."""

    def __init__(self, shown: Shown, port: int, ids: Mapping[str, str]) -> None:
        self.shown = shown
        self.ids = ids
        self._port = port
        self._cookie: dict[bytes, bytes] = {}
        self.csrf = ""

    async def ask(self, *parts: bytes) -> Answer:
        wire = await connect(self._port)
        wire.send(*parts)
        answer = await wire.answer()
        await wire.close()
        return answer

    async def get(self, path: str) -> Answer:
        return await self.ask(head(f"GET {path}", {**HTML, **self._cookie}))

    async def post(self, path: str, **fields: str) -> Answer:
        body = urlencode(fields).encode()
        return await self.ask(head(f"POST {path}", {**FORM, **HTML, **self._cookie}, length=len(body)), body)

    async def do(self, path: str, **fields: str) -> Answer:
        """Post a form as a page of ours would."""
        return await self.post(path, csrf=self.csrf, **fields)

    async def log_in(self) -> None:
        answer = await self.post("/login", token=TOKEN)
        assert answer.status == 303
        self._cookie = {b"Cookie": answer.headers["set-cookie"].partition(";")[0].encode()}
        page = (await self.get("/")).body.decode()
        self.csrf = re.findall('<meta name="csrf" content="([^"]+)">', page)[0]

    async def follow(self, page: str) -> Wire:
        """A connection on which what changes in a page is told."""
        wire = await connect(self._port, bodiless=True)
        wire.send(head(f"GET /live?page={page}", {**self._cookie, b"Accept": b"text/event-stream"}))
        answer = await wire.answer()
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        await become(lambda: b"id: " in wire.received)
        return wire


@asynccontextmanager
async def browser(state: Path) -> AsyncIterator[Browser]:
    """The dashboard of a server that has lived a while, and somebody who has logged in."""
    shown = Shown(state, reactor)
    ids = await lived_in(shown)
    api = api_of(shown.journal, shown.apps, state, changes=shown.changes, readers=shown.readers)
    console = Console(api, TOKEN, now=lambda: NOW, hosts=lambda: ["deploy.example.com"])
    console.show(shown.dashboard)
    site = GuardedSite(console.resource(), screen=console.screen, reactor=reactor, limits=LIMITS, says=explained)
    async with listening(site) as port:
        visitor = Browser(shown, port, ids)
        await visitor.log_in()
        yield visitor


@pytest_twisted.ensureDeferred
async def test_every_page_is_there_for_who_has_logged_in_and_for_nobody_else(tmp_path: Path) -> None:
    """P88, P89."""
    async with browser(tmp_path) as visitor:
        ids = visitor.ids
        paths = ["/", "/apps/web", "/apps/web/history", "/deliveries", "/hooks", f"/deployments/{ids['failed']}"]
        for path in [*paths, f"/deployments/{ids['failed']}/log", f"/deliveries/{ids['ping']}"]:
            answer = await visitor.get(path)
            assert answer.status == 200, path
            assert answer.headers["cache-control"] == "no-store"
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            stranger = await visitor.ask(head(f"GET {path}", HTML))
            assert stranger.status == 401
            assert b"Say hello" not in stranger.body
            assert b'name="token"' in stranger.body
        assert (await visitor.ask(head("GET /live?page=/"))).status == 401


@pytest_twisted.ensureDeferred
async def test_odd_addresses_are_answered_with_a_page_that_says_so(tmp_path: Path) -> None:
    """P90."""
    async with browser(tmp_path) as visitor:
        ids = ("99999999999999999999", "-1", "x", "%F0%9F%92%A9", "%3Cscript%3E")
        for path in ("/nowhere", "/apps/none", "/static/0/style.css", *(f"/deployments/{each}" for each in ids)):
            answer = await visitor.get(path)
            assert answer.status == 404, path
            assert b"<h1>Not found</h1>" in answer.body, path
            assert b"<script>" not in answer.body
        assert (await visitor.get("/deployments/%ff")).status == 404
        assert (await visitor.get("/live?page=/nowhere")).status == 404


@pytest_twisted.ensureDeferred
async def test_its_files_are_kept_for_ever_under_addresses_of_their_content(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        page = (await visitor.get("/")).body.decode()
        urls = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
        assert len(urls) == 3
        for url in urls:
            answer = await visitor.ask(head(f"GET {url}"))
            assert (answer.status, answer.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
            assert answer.headers["x-content-type-options"] == "nosniff"


# --- actions


@pytest_twisted.ensureDeferred
async def test_a_deployment_is_begun_and_shown(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        answer = await visitor.do("/apps/web/deploy")
        running = visitor.shown.lane().running
        assert running is not None
        assert (answer.status, running.trigger, running.wanted) == (303, Trigger.MANUAL, None)
        assert answer.headers["location"] == f"/deployments/{running.id}?notice=deploy"
        assert b"The deployment was asked for." in (await visitor.get(answer.headers["location"])).body


@pytest_twisted.ensureDeferred
async def test_what_hurts_is_asked_about_first(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        lane = visitor.shown.lane("docs")
        begun, delivery = f"/deployments/{visitor.ids['running']}/cancel", f"/deliveries/{visitor.ids['delivery']}"
        wishes = [("/apps/web/rollback", {"to": "r1"}), ("/apps/web/deploy", {"revision": "1A2B3C4"})]
        for path, fields in [*wishes, (f"{delivery}/replay", {}), (begun, {})]:
            before = len(await visitor.shown.journal.deployments(limit=100))
            asked = await visitor.do(path, **fields)
            assert (asked.status, b"Yes, do it" in asked.body) == (200, True)
            assert len(await visitor.shown.journal.deployments(limit=100)) == before
            hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.body.decode()))
            assert hidden["confirmed"] == "yes"
            assert re.search(f'action="{path}"', asked.body.decode())
            assert (await visitor.post(path, **hidden)).status == 303
        assert lane.running is None
        cancelled = await visitor.shown.journal.deployment(visitor.ids["running"])
        assert cancelled is not None
        assert cancelled.outcome is Outcome.CANCELLED
        wanted = [each.wanted for each in await visitor.shown.journal.deployments(app="web", limit=3)]
        assert wanted == [None, "1a2b3c4", "r1"]


@pytest_twisted.ensureDeferred
async def test_an_app_is_held_back_and_let_go(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        for how, (paused, pinned) in {
            "pause": (True, False),
            "pin": (True, True),
            "resume": (False, True),
            "unpin": (False, False),
        }.items():
            answer = await visitor.do(f"/apps/web/{how}")
            assert (answer.status, answer.headers["location"]) == (303, f"/apps/web?notice={how}")
            steering = await visitor.shown.journal.steering("web")
            assert (steering.paused, steering.pinned) == (paused, pinned)


@pytest_twisted.ensureDeferred
async def test_nothing_is_done_for_a_foreign_page_or_by_looking(tmp_path: Path) -> None:
    """P89."""
    async with browser(tmp_path) as visitor:
        for path in (
            "/apps/web/deploy",
            "/apps/web/rollback",
            "/apps/web/pin",
            f"/deliveries/{visitor.ids['ping']}/replay",
        ):
            assert (await visitor.post(path, confirmed="yes")).status == 403
            assert (await visitor.post(path, confirmed="yes", csrf="0" * 64)).status == 403
            assert (await visitor.get(path)).status in (404, 405)
        assert visitor.shown.lane().running is None


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("path", "fields", "status", "said"),
    [
        ("/apps/web/deploy", {"revision": "main; rm"}, 400, b"4 to 64 hexadecimal digits"),
        ("/apps/none/deploy", {}, 404, b"There is no app none."),
        ("/apps/web/rollback", {"to": "r9", "confirmed": "yes"}, 404, b"keeps no release r9"),
        ("/deployments/{good}/cancel", {"confirmed": "yes"}, 409, b"not under way any more"),
        ("/deliveries/none/replay", {"confirmed": "yes"}, 404, b"There is no delivery none."),
    ],
)
async def test_what_cannot_be_done_is_answered_with_a_page_that_says_why(
    tmp_path: Path, path: str, fields: dict[str, str], status: int, said: bytes
) -> None:
    async with browser(tmp_path) as visitor:
        answer = await visitor.do(path.format(**visitor.ids), **fields)
        assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert said in answer.body


@pytest_twisted.ensureDeferred
async def test_a_journal_that_cannot_write_is_said(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        visitor.shown.stored.fail_with = JournalUnavailable("the disk is full")
        answer = await visitor.do("/apps/web/deploy")
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert b"the disk is full" in answer.body


# --- live


def told(wire: Wire, name: str) -> list[object]:
    """The data of the events of this name so far."""
    found = re.findall(rf"event: {name}\ndata: (.*)\n", wire.received.decode())
    return [json.loads(each) for each in found]


@pytest_twisted.ensureDeferred
async def test_the_parts_that_a_change_is_shown_in_are_told_to_who_looks_at_the_page(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        overview, other = await visitor.follow("/"), await visitor.follow("/apps/web")
        deployment = await visitor.follow(f"/deployments/{visitor.ids['running']}")
        await visitor.shown.journal.advance(visitor.ids["running"], Phase.CHECKING, NOW)
        await become(lambda: bool(told(overview, "parts") and told(deployment, "parts")))
        [parts] = told(overview, "parts")
        names = [re.findall(r'id="([^"]+)" data-part', str(part))[0] for part in parts]  # type: ignore[attr-defined]
        assert sorted(names) == ["app-docs", "newest-deliveries", "newest-deployments"]
        assert "checking" in parts[0]  # type: ignore[index]
        assert visitor.csrf not in overview.received.decode()
        for wire in (overview, other, deployment):
            await wire.close()
        await become(lambda: not visitor.shown.dashboard._live._feeds)


@pytest_twisted.ensureDeferred
async def test_a_storm_of_changes_is_told_together(tmp_path: Path) -> None:
    """T42: to show the same lists once for each of a thousand pushes would hold the door up for seconds."""
    async with browser(tmp_path) as visitor:
        wire, changes = await visitor.follow("/"), visitor.shown.changes
        for number in range(300):
            changes.publish(Kind.DEPLOYMENT, f"{number}")
            changes.publish(Kind.LOG, f"{number}")
        await become(lambda: f"id: {changes.place}\n\n".encode() in wire.received)
        [_] = told(wire, "parts")
        await wire.close()


@pytest_twisted.ensureDeferred
async def test_a_log_that_grows_is_told_of_and_read_on_from_where_it_was(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        name = visitor.ids["running"]
        wire = await visitor.follow(f"/deployments/{name}")
        size = (tmp_path / "logs" / f"{name}.log").stat().st_size
        visitor.shown.log(name, "\x1b[31mmore <b>\n")
        visitor.shown.changes.publish(Kind.LOG, name)
        await become(lambda: bool(told(wire, "log")))
        await wire.close()
        more = f"/deployments/{name}/log/more"
        answer = json.loads((await visitor.get(f"{more}?place={size}&style=t-bold")).body)
        assert answer["html"] == '<span class="c-red t-bold">more &lt;b&gt;\n</span>'
        assert (answer["start"], answer["end"], answer["style"]) == (size, size + 14, "c-red t-bold")
        assert (await visitor.get(f"{more}?place=-1")).status == 400


@pytest_twisted.ensureDeferred
async def test_a_page_tells_the_place_from_which_on_it_is_to_be_renewed(tmp_path: Path) -> None:
    async with browser(tmp_path) as visitor:
        page = (await visitor.get("/")).body.decode()
        [place] = re.findall(r'data-place="([^"]+)"', page)
        await visitor.shown.apps[0].pause()
        wire = await visitor.follow(f"/&since={place}")
        await become(lambda: bool(told(wire, "parts")))
        assert "paused" in str(told(wire, "parts")[0])
        await wire.close()
