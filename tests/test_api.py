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
from tests.steered import HOOK, OLD, SlowJournal, SteeredApp, deliver, serving, site_of
from tests.waiting import become
from tests.wire import Answer, connect, connect_through, head, listening
from twisted_hook.hooks import Secret
from twisted_hook.model import (
    Commit,
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    Outcome,
    Parked,
    Steering,
    StepFailed,
    Trigger,
)

TIP = Commit("1a2b3c4" + "0" * 33, "Say hello", "Somebody")
JSON = {b"Content-Type": b"application/json"}


class Client:
    """Asks the API, with a connection for each request."""

    def __init__(self, journal: MemoryJournal, apps: Sequence[SteeredApp], state: Path) -> None:
        self.journal = journal
        self.web, self.docs = apps[:2]
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


# --- replay

MAIN = "refs/heads/main"


@pytest_twisted.ensureDeferred
async def test_who_asks_for_a_replay_is_answered_with_what_it_made(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        delivery = await deliver(client.journal, "1", ("acme/web", MAIN, TIP.revision), apps=["web"])
        for made in (2, 3):
            status, told = await client.post(f"/deliveries/{delivery}/replay")
            assert (status, list(told)) == (202, ["deployments"])
            [one] = told["deployments"]
            assert (one["app"], one["trigger"], one["outcome"]) == ("web", "replay", None)
            assert one == await client.get(f"/deployments/{one['id']}")
            assert (await client.get("/apps/web"))["running"] == one["id"]
            led_to = (await client.get(f"/deliveries/{delivery}"))["deployments"]
            assert (len(led_to), led_to[-1]) == (made, one["id"])


@pytest_twisted.ensureDeferred
async def test_a_replay_is_for_whom_the_delivery_is_for_by_now(tmp_path: Path) -> None:
    """Though it was for one of them, or for nobody, when it came."""
    async with api(tmp_path) as client:
        for guid, was_for in (("1", ["web"]), ("2", [])):
            delivery = await deliver(client.journal, guid, ("acme/all", MAIN, TIP.revision), apps=was_for)
            status, told = await client.post(f"/deliveries/{delivery}/replay", {})
            assert (status, [one["app"] for one in told["deployments"]]) == (202, ["web", "docs"])
            running = [client.web.lane.running, client.docs.lane.running]
            assert [one["id"] for one in told["deployments"]] == [one and one.id for one in running]


@pytest_twisted.ensureDeferred
async def test_a_replay_that_nobody_wants_is_refused_and_says_why(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        journal, nobody = client.journal, "it is for nobody: "
        for delivery, status, error in (
            ("nine", 404, "there is no delivery nine; its id is the one that the forge was answered with"),
            (
                await deliver(journal, "1", ("acme/web", MAIN, TIP.revision), hook="gone"),
                409,
                "the hook gone is not configured any more",
            ),
            (await deliver(journal, "2"), 409, f"{nobody}a ping"),
            (await deliver(journal, "3", ("acme/web", MAIN, None)), 409, f"{nobody}the ref was deleted"),
            (
                await deliver(journal, "4", ("acme/web", "refs/heads/dev", TIP.revision)),
                409,
                f"{nobody}no app deploys this branch",
            ),
            (
                await deliver(journal, "5", ("acme/sold", MAIN, TIP.revision)),
                409,
                f"{nobody}a repository that the hook does not serve",
            ),
        ):
            assert await client.post(f"/deliveries/{delivery}/replay") == (status, {"error": error})
        assert await journal.deployments() == []


class HalfJournal(MemoryJournal):
    """Takes one deployment, and then no more."""

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        made = await super().enqueue(app, trigger, wanted, delivery=delivery, reason=reason)
        self.fail_with = JournalUnavailable("disk is full")
        return made


@pytest_twisted.ensureDeferred
async def test_what_a_replay_has_made_is_worked_on_though_the_journal_takes_no_more_of_it(tmp_path: Path) -> None:
    async with api(tmp_path, HalfJournal()) as client:
        delivery = await deliver(client.journal, "1", ("acme/all", MAIN, TIP.revision))
        assert (await client.post(f"/deliveries/{delivery}/replay"))[0] == 503
        [made] = await client.journal.deployments()
        assert (client.web.lane.running, client.docs.lane.running) == (made, None)


# --- what is shown


@pytest_twisted.ensureDeferred
async def test_an_app_shows_which_tags_it_deploys_and_how_often_its_remote_is_looked_at(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        client.web.branch, client.web.tag, client.web.poll = None, "v*", 0.0
        web, docs = await client.get("/apps")
        assert (web["branch"], web["tag"], web["poll"]) == (None, "v*", 0.0)
        assert (docs["branch"], docs["tag"], docs["poll"]) == ("main", None, 300.0)


@pytest_twisted.ensureDeferred
async def test_a_delivery_shows_every_ref_that_it_told_of_and_the_first_by_itself(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        pushes = [("acme/web", "refs/heads/dev", None), ("acme/web", MAIN, TIP.revision)]
        several, none = await deliver(client.journal, "1", *pushes, apps=["web"]), await deliver(client.journal, "2")
        shown = await client.get(f"/deliveries/{several}")
        assert (shown["repository"], shown["ref"], shown["after"]) == pushes[0]
        assert [(one["repository"], one["ref"], one["after"]) for one in shown["pushes"]] == pushes
        assert (shown["verdict"], len(shown["deployments"])) == ("accepted", 1)
        ping, listed = await client.get("/deliveries")
        assert listed == shown
        assert (ping["id"], ping["repository"], ping["ref"], ping["after"], ping["pushes"]) == (none, *[None] * 3, [])


@pytest_twisted.ensureDeferred
async def test_a_deployment_shows_why_it_was_made_and_whether_its_failure_may_pass(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        made = await client.journal.enqueue("web", Trigger.POLL, reason="branch moved, no hook came")
        shown = await client.get(f"/deployments/{made.id}")
        assert (shown["trigger"], shown["reason"]) == ("poll", "branch moved, no hook came")
        assert shown["transient"] is False
        await client.journal.finish(made.id, Outcome.FAILED, 3.0, reason="the disk is full", transient=True)
        [shown] = await client.get("/deployments")
        assert (shown["outcome"], shown["reason"], shown["transient"]) == ("failed", "the disk is full", True)


class DamagedJournal(MemoryJournal):
    """A journal with rows that could not be read."""

    async def parked(self) -> Sequence[Parked]:
        newest = Parked("0000000000007", "deployment", "there is no phase 'flying'", 1.5, '{"phase": "flying"}')
        return [newest, Parked("0000000000003", "delivery", "it is odd", 1.0, "{}")]


@pytest_twisted.ensureDeferred
async def test_what_of_the_journal_could_not_be_read_is_shown(tmp_path: Path) -> None:
    async with api(tmp_path, DamagedJournal()) as client:
        assert [row["id"] for row in await client.get("/parked")] == ["0000000000007", "0000000000003"]
        assert await client.get("/parked?limit=1") == [
            {
                "id": "0000000000007",
                "kind": "deployment",
                "problem": "there is no phase 'flying'",
                "parked_at": "1970-01-01T00:00:01.500Z",
                "row": '{"phase": "flying"}',
            }
        ]
    async with api(tmp_path) as client:
        assert await client.get("/parked") == []


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/deployments", "/deliveries"])
async def test_a_list_is_as_long_as_is_asked_for_within_limits(tmp_path: Path, path: str) -> None:
    async with api(tmp_path) as client:
        for number in range(52):
            await deliver(client.journal, str(number), ("acme/web", MAIN, TIP.revision), apps=["web"])
        lengths = {"": 50, "?limit=2": 2, "?limit=0": 1, "?limit=007": 7, f"?limit={'9' * 5000}": 52}
        for query, length in lengths.items():
            assert len(await client.get(f"{path}{query}")) == length, query


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/deployments", "/deliveries", "/parked"])
async def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, path: str) -> None:
    async with api(tmp_path) as client:
        for limit in ("x", "", "-1", "1.5", "1e3", "%D9%A3", "+5", "%205", "0x10"):
            answer = await client.ask(head(f"GET /api/v1{path}?limit={limit}"))
            assert (answer.status, json.loads(answer.body)) == (400, {"error": "limit: must be a whole number"}), limit


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
        ("/deliveries/x/replay", {"app": "web"}, "`app`"),
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
        ("GET /api/v1/deliveries/x/replay", "POST"),
        ("POST /api/v1/parked", "GET, HEAD"),
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
@pytest.mark.parametrize("path", ["apps/web/deploy", "deliveries/DELIVERY/replay"])
async def test_what_was_begun_is_not_undone_by_a_client_who_hangs_up(tmp_path: Path, path: str) -> None:
    """Else it would be in the journal, and in no lane until the next start. Over TCP, where a reset tells of it."""
    journal = SlowJournal()
    web = SteeredApp(journal)
    site = site_of(journal, [web], tmp_path)
    delivery = await deliver(journal, "1", ("acme/web", MAIN, TIP.revision))
    async with listening(site) as port:
        wire = await connect(port)
        wire.send(head(f"POST /api/v1/{path.replace('DELIVERY', delivery)}", length=0))
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
        for _ in range(600):  # whatever has failed since, and how often
            failed = await client.journal.enqueue("web", Trigger.PUSH)
            await client.journal.finish(failed.id, Outcome.FAILED, 9.0)
        shown = await client.get("/apps/web")
        assert (shown["revision"], shown["subject"], shown["running"]) == (TIP.revision, "Say hello", None)


# --- which secret has verified when


@pytest_twisted.ensureDeferred
async def test_the_hooks_tell_which_of_their_secrets_has_verified_last_and_when(tmp_path: Path) -> None:
    """A secret that is not configured any more is not shown, and one that never verified has no time."""
    journal = MemoryJournal()
    old, new, gone = (Secret(word.encode(), f"file {word}") for word in ("old", "new", "gone"))
    site = site_of(journal, [SteeredApp(journal)], tmp_path, secrets=(old, new))
    for guid, hook, secret in (("1", HOOK, gone), ("2", HOOK, old), ("3", "other", new)):
        message = Message(guid, "push", reason="a ping")
        await journal.accept(NewDelivery(hook, message, guid, 1.5, (), message.reason, secret=secret.name))
    verified = next(each.delivery for each in await journal.verified() if each.secret == old.name)
    async with serving(site, tmp_path):
        [told] = await Client(journal, [SteeredApp(journal)] * 2, tmp_path).get("/hooks")
    assert (told["name"], told["path"], told["forge"]) == (HOOK, "/x", "github")
    assert told["secrets"] == [
        {
            "source": "file old",
            "name": old.name,
            "last_verified_at": "1970-01-01T00:00:01.500Z",
            "delivery": verified,
        },
        {"source": "file new", "name": new.name, "last_verified_at": None, "delivery": None},
    ]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("id", ["99999999999999999999", "-1", "x", "..%2f..%2ftoken", "%00", "1%0a", "%F0%9F%92%A9"])
async def test_odd_ids_are_not_found(tmp_path: Path, id: str) -> None:
    """P90."""
    async with api(tmp_path) as client:
        for path in (f"/deployments/{id}", f"/deployments/{id}/log", f"/deployments/{id}/log?follow=1"):
            assert (await client.ask(head(f"GET /api/v1{path}"))).status == 404
        assert (await client.ask(head(f"GET /api/v1/deliveries/{id}"))).status == 404
        assert (await client.ask(head(f"GET /api/v1/apps/{id}"))).status == 404
        assert (await client.post(f"/deployments/{id}/cancel"))[0] == 404
        assert await client.get(f"/deployments?before={id}") == []
