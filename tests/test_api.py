"""The API as a client of its socket sees it: what it shows of an app, what it takes, and what it refuses, and why."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint

from tests.fakes import MemoryJournal
from tests.steered import OLD, SlowJournal, SteeredApp, serving, site_of
from tests.wire import Answer, become, connect, connect_through, head, listening
from twisted_hook.model import Commit, JournalUnavailable, Outcome, Steering, StepFailed, Trigger

TIP = Commit("1a2b3c4" + "0" * 33, "Say hello", "Somebody")
JSON = {b"Content-Type": b"application/json"}


class Client:
    """Asks the API, with a connection for each request."""

    def __init__(self, journal: MemoryJournal, apps: Sequence[SteeredApp], state: Path) -> None:
        self.journal = journal
        self.web = apps[0]
        self.endpoint = UNIXClientEndpoint(reactor, str(state / "api.sock"))

    async def ask(self, *parts: bytes) -> Answer:
        wire = await connect_through(self.endpoint)
        wire.send(*parts)
        answer = await wire.answer()
        await wire.close()
        return answer

    async def get(self, path: str) -> Any:
        answer = await self.ask(head(f"GET /api/v1{path}"))
        assert answer.status == 200
        return json.loads(answer.body)

    async def post(self, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the decoded body of the answer; bytes are sent as they are, None as no body."""
        if body is None:
            answer = await self.ask(head(f"POST /api/v1{path}", length=0))
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await self.ask(head(f"POST /api/v1{path}", JSON, length=len(data)), data)
        assert answer.headers["content-type"] == "application/json"
        assert (answer.headers.get("retry-after") is not None) == (answer.status == 503)
        return answer.status, json.loads(answer.body)


@asynccontextmanager
async def api(state: Path, journal: MemoryJournal | None = None, **given: Any) -> AsyncIterator[Client]:
    """An API with an app called web, and one called docs."""
    journal = journal or MemoryJournal()
    apps = [SteeredApp(journal, **given), SteeredApp(journal, "docs")]
    async with serving(site_of(journal, apps, state), state):
        yield Client(journal, apps, state)


# --- deploy and roll back


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("body", [None, b"{}", {"revision": None}])
async def test_who_asks_for_a_deployment_is_answered_with_it(tmp_path: Path, body: object) -> None:
    async with api(tmp_path) as client:
        status, told = await client.post("/apps/web/deploy", body)
        assert status == 202
        assert (told["app"], told["trigger"], told["wanted"], told["outcome"]) == ("web", "manual", None, None)
        assert told == await client.get(f"/deployments/{told['id']}")
        assert (await client.get("/apps/web"))["running"] == told["id"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("revision", ["1a2b", "1A2B3C4", TIP.revision, "e" * 64])
async def test_a_revision_may_be_asked_for_by_its_id_or_the_beginning_of_it(tmp_path: Path, revision: str) -> None:
    async with api(tmp_path) as client:
        status, told = await client.post("/apps/web/deploy", {"revision": revision})
        assert (status, told["wanted"]) == (202, revision.lower())


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "revision", ["", "1a2", "main", "--upload-pack=x", "1a2b3c4\n", "1a2b..2b3c", "e" * 65, "1a2b\0"]
)
async def test_a_revision_that_is_none_is_refused(tmp_path: Path, revision: str) -> None:
    async with api(tmp_path) as client:
        status, told = await client.post("/apps/web/deploy", {"revision": revision})
        assert (status, told) == (400, {"error": "revision: must be the id of a commit: 4 to 64 hexadecimal digits"})
        assert await client.journal.deployments() == []


@pytest_twisted.ensureDeferred
async def test_who_asks_for_a_rollback_is_answered_with_it(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        for body, wanted in ((None, None), ({"to": "r1"}, "r1")):
            status, told = await client.post("/apps/web/rollback", body)
            assert (status, told["trigger"], told["wanted"]) == (202, "rollback", wanted)


@pytest_twisted.ensureDeferred
async def test_a_release_that_is_not_kept_is_not_found(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        assert await client.post("/apps/web/rollback", {"to": "../r1"}) == (
            404,
            {"error": "web keeps no release ../r1"},
        )


@pytest_twisted.ensureDeferred
async def test_where_there_is_nothing_to_go_back_to_that_is_a_conflict(tmp_path: Path) -> None:
    async with api(tmp_path, kept=()) as client:
        assert await client.post("/apps/web/rollback") == (409, {"error": "web has no release to go back to"})


@pytest_twisted.ensureDeferred
async def test_an_app_shows_what_it_could_go_back_to(tmp_path: Path) -> None:
    async with api(tmp_path, kept=("r2", "r1")) as client:
        kept = (await client.get("/apps/web"))["kept"]
        assert [each["release"] for each in kept] == ["r2", "r1"]
        assert kept[0] == {"release": "r2", "revision": OLD.revision, "subject": OLD.subject, "current": False}
        client.web.fails = StepFailed("git is gone")
        assert (await client.get("/apps/web"))["kept"] == []


# --- pin and pause


@pytest_twisted.ensureDeferred
async def test_an_app_shows_whether_it_is_paused_and_whether_it_is_pinned(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        for how, steering in {
            "pin": Steering(pinned=True),
            "pause": Steering(pinned=True, paused=True),
            "unpin": Steering(paused=True),
            "resume": Steering(),
        }.items():
            status, told = await client.post(f"/apps/web/{how}")
            assert (status, told["name"]) == (200, "web")
            assert (told["paused"], told["pinned"]) == (steering.paused, steering.pinned)
            assert told == await client.get("/apps/web")
            listed = (await client.get("/apps"))[0]
            assert listed == {key: value for key, value in told.items() if key != "kept"}
        assert await client.journal.steering("docs") == Steering()


# --- cancel


@pytest_twisted.ensureDeferred
async def test_what_runs_can_be_cancelled_once(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        _, told = await client.post("/apps/web/deploy")
        status, cancelled = await client.post(f"/deployments/{told['id']}/cancel")
        assert (status, cancelled["outcome"]) == (202, "cancelled")
        assert await client.post(f"/deployments/{told['id']}/cancel") == (
            409,
            {"error": f"deployment {told['id']} has ended: cancelled"},
        )


@pytest_twisted.ensureDeferred
async def test_a_deployment_that_nobody_works_on_cannot_be_cancelled(tmp_path: Path) -> None:
    """Of an app that is not configured any more, or while the lane still waits for the journal."""
    async with api(tmp_path) as client:
        for app in ("gone", "web"):
            one = await client.journal.enqueue(app, Trigger.PUSH)
            status, told = await client.post(f"/deployments/{one.id}/cancel")
            assert (status, told) == (409, {"error": f"deployment {one.id} is in no lane"})


# --- what is refused


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("call", ["deploy", "rollback", "pin", "unpin", "pause", "resume"])
async def test_an_unknown_app_is_not_found(tmp_path: Path, call: str) -> None:
    async with api(tmp_path) as client:
        assert await client.post(f"/apps/wbe/{call}") == (404, {"error": "there is no app wbe"})


@pytest_twisted.ensureDeferred
async def test_an_unknown_deployment_is_not_found(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        assert await client.post("/deployments/nine/cancel") == (404, {"error": "there is no deployment nine"})


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/apps/web/deploy", {"revision": 12345678}, "$.revision"),
        ("/apps/web/deploy", {"revison": "1a2b3c4"}, "`revison`"),
        ("/apps/web/rollback", {"to": ["r1"]}, "$.to"),
        ("/apps/web/pin", {"to": "r1"}, "`to`"),
        ("/apps/web/pause", [], "array"),
        ("/apps/web/deploy", b"revision=1a2b3c4", "not JSON"),
        ("/apps/web/deploy", b'{"revision": "\xff"}', "not JSON"),
        ("/deployments/x/cancel", {"force": True}, "`force`"),
    ],
)
async def test_a_body_of_another_shape_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, path: str, body: object, named: str
) -> None:
    async with api(tmp_path) as client:
        status, told = await client.post(path, body)
        assert status == 400
        assert named in told["error"]
        assert await client.journal.deployments() == []
        assert await client.journal.steering("web") == Steering()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("headers", [{}, {b"Content-Type": b"text/plain"}, {b"Content-Type": b"application/json-seq"}])
async def test_a_body_that_does_not_say_that_it_is_json_is_refused(tmp_path: Path, headers: dict[bytes, bytes]) -> None:
    async with api(tmp_path) as client:
        answer = await client.ask(head("POST /api/v1/apps/web/deploy", headers, length=2), b"{}")
        assert answer.status == 415
        assert await client.journal.deployments() == []


@pytest_twisted.ensureDeferred
async def test_a_body_over_64_kib_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        answer = await client.ask(head("POST /api/v1/apps/web/deploy", JSON, length=65_537))
        assert answer.status == 413


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("request_line", "allowed"),
    [
        ("GET /api/v1/apps/web/deploy", "POST"),
        ("DELETE /api/v1/apps/web/pin", "POST"),
        ("GET /api/v1/deployments/x/cancel", "POST"),
        ("POST /api/v1/apps", "GET, HEAD"),
        ("POST /api/v1/apps/web", "GET, HEAD"),
        ("PUT /api/v1/deployments/x", "GET, HEAD"),
        ("PURGE /api/v1/deliveries", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_know_is_answered_with_those_that_it_knows(
    tmp_path: Path, request_line: str, allowed: str
) -> None:
    async with api(tmp_path) as client:
        answer = await client.ask(head(request_line))
        assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/apps/web/explode", "/api/v1/%ff", "/api/v1/apps/a%2fb"])
async def test_an_unknown_path_is_not_found_whatever_the_method(tmp_path: Path, path: str) -> None:
    async with api(tmp_path) as client:
        for method in ("GET", "POST"):
            answer = await client.ask(head(f"{method} {path}"))
            assert (answer.status, answer.headers["content-type"]) == (404, "application/json")


# --- the journal


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("call", ["deploy", "rollback", "pin", "pause"])
async def test_without_a_journal_nothing_is_promised(tmp_path: Path, call: str) -> None:
    async with api(tmp_path) as client:
        client.journal.fail_with = JournalUnavailable("database or disk is full")
        assert await client.post(f"/apps/web/{call}") == (
            503,
            {"error": "the journal is unavailable: database or disk is full"},
        )
        client.journal.fail_with = None
        assert (await client.post(f"/apps/web/{call}"))[0] in (200, 202)


@pytest_twisted.ensureDeferred
async def test_what_was_begun_is_not_undone_by_a_client_who_hangs_up(tmp_path: Path) -> None:
    """Else it would be in the journal, and in no lane until the next start. Over TCP, where a reset tells of it."""
    journal = SlowJournal()
    web = SteeredApp(journal)
    site = site_of(journal, [web], tmp_path)
    async with listening(site) as port:
        wire = await connect(port)
        wire.send(head("POST /api/v1/apps/web/deploy", length=0))
        await journal.asked
        await wire.abort()
        await become(lambda: not site.connected)
        journal.commit.callback(None)
        [one] = await journal.deployments()
        assert web.lane.running == one


@pytest_twisted.ensureDeferred
async def test_what_an_app_without_a_server_is_at_is_what_was_deployed_last(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.post("/apps/web/deploy")
        await client.web.end(Outcome.DEPLOYED, commit=TIP)
        shown = await client.get("/apps/web")
        assert (shown["revision"], shown["subject"], shown["running"]) == (TIP.revision, "Say hello", None)
