"""What is measured, as Prometheus reads it: parsed by its own library."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import pytest_twisted
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.internet.task import Clock

from tests.fakes import MemoryJournal
from tests.installed import RELEASE, Hookdeploy, Origin, put_away, site
from tests.journals import opened
from tests.waiting import PATIENCE, until
from twisted_hook.announced import AnnouncedJournal
from twisted_hook.changes import Changes, Kind
from twisted_hook.metrics import BEAT, SOON, Answered, Looks, Metrics, Server, Sources
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, Phase, ServerStatus, Steering, Trigger
from twisted_hook.timings import MOMENTS, Durations

Samples = dict[str, dict[tuple[str, ...], float]]


def samples(text: str) -> Samples:
    """Every value, by the sample's name and the values of its labels in the order of their names."""
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@dataclass
class StillLane:
    running: Deployment | None = None
    unfinished: list[Deployment] = field(default_factory=list)


@dataclass
class StatedServer:
    status: ServerStatus


@dataclass
class StillApp:
    """An app of which a test says how it is."""

    name: str = "web"
    lane: StillLane = field(default_factory=StillLane)
    server: Server | None = None
    held: Steering = field(default_factory=Steering)

    async def steering(self) -> Steering:
        return self.held


class Measured:
    """Metrics over a journal in memory, with a clock of their own. The time is 100."""

    def __init__(self, app: StillApp, state: Path, **given: Mapping[tuple[str, str], int]) -> None:
        self.clock, self.app, self.changes = Clock(), app, Changes("life")
        self.kept = MemoryJournal()
        self.journal = AnnouncedJournal(self.kept, self.changes.publish)
        self.commits = Durations(MOMENTS)
        self.rows: Mapping[str, int] | Exception = {"deployments": 3}
        self.metrics = Metrics(self.clock, self.changes, now=lambda: 100.0)
        verdicts = given.get("verdicts", {})
        looks = Looks({"web": 5}, {"web": 1})
        self.metrics.start(
            Sources(lambda: [app], self.journal, Answered(verdicts, {401: 7}), looks, self.commits, self._rows, state)
        )

    async def _rows(self) -> Mapping[str, int]:
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows

    async def samples(self) -> Samples:
        text, _ = await self.metrics.text()
        return samples(text.decode())

    async def deployed(self, outcome: Outcome = Outcome.DEPLOYED, app: str = "web") -> Deployment:
        """One that waited for 1 second, built for 2 and swapped for 3."""
        made = await self.journal.enqueue(app, Trigger.MANUAL)
        await self.journal.begin(made.id, 101.0)
        await self.journal.advance(made.id, Phase.BUILDING, 101.0)
        await self.journal.advance(made.id, Phase.SWAPPING, 103.0)
        await self.journal.advance(made.id, Phase.DONE, 106.0)
        await self.journal.finish(made.id, outcome, 106.0)
        return made


@pytest.fixture
def app() -> StillApp:
    return StillApp()


@pytest.fixture
def measured(app: StillApp, tmp_path: Path) -> Iterator[Measured]:
    made = Measured(app, tmp_path, verdicts={("github", "accepted"): 2})
    yield made
    made.metrics.stop()
    assert made.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_deployment_is_counted_once_when_it_has_ended(measured: Measured) -> None:
    made = await measured.journal.enqueue("web", Trigger.PUSH)
    assert "hookdeploy_deployments_total" not in await measured.samples()
    await measured.journal.finish(made.id, Outcome.FAILED, 107.0)
    expected = {("web", "failed", "push"): 1.0}
    assert (await measured.samples())["hookdeploy_deployments_total"] == expected
    measured.changes.publish(Kind.DEPLOYMENT, made.id)  # such as a description that comes later
    assert (await measured.samples())["hookdeploy_deployments_total"] == expected


@pytest_twisted.ensureDeferred
async def test_what_ended_before_the_start_is_not_counted(measured: Measured) -> None:
    made = await measured.kept.enqueue("web", Trigger.PUSH)
    await measured.kept.finish(made.id, Outcome.CANCELLED, 99.0)
    measured.changes.publish(Kind.DEPLOYMENT, made.id)
    assert "hookdeploy_deployments_total" not in await measured.samples()


@pytest_twisted.ensureDeferred
async def test_it_is_counted_though_nobody_asks_for_long(measured: Measured) -> None:
    """A thousand outcomes of one app cost no more room than one."""
    for _ in range(250):
        await measured.deployed()
    assert len(measured.metrics._changed_ones) == 250
    measured.clock.pump([SOON] * 3)
    assert not measured.metrics._changed_ones
    assert (await measured.samples())["hookdeploy_deployments_total"] == {("web", "deployed", "manual"): 250.0}


@pytest_twisted.ensureDeferred
async def test_the_time_in_each_phase_is_measured(measured: Measured) -> None:
    made = await measured.deployed()
    found = await measured.samples()
    assert found["hookdeploy_deployment_phase_seconds_sum"] == {
        ("web", "queued"): 101.0 - made.queued_at,
        ("web", "building"): 2.0,
        ("web", "swapping"): 3.0,
    }
    assert found["hookdeploy_deployment_seconds_sum"] == {("web", "deployed"): 5.0}
    assert found["hookdeploy_deployment_phase_seconds_bucket"]["web", "1.0", "building"] == 0.0
    assert found["hookdeploy_deployment_phase_seconds_bucket"]["web", "2.5", "building"] == 1.0


@pytest_twisted.ensureDeferred
async def test_the_last_good_one_is_known_also_from_before_the_start(measured: Measured) -> None:
    made = await measured.kept.enqueue("web", Trigger.PUSH)
    await measured.kept.finish(made.id, Outcome.DEPLOYED, 50.0)
    for _ in range(300):  # whatever has failed since, and how often
        failed = await measured.kept.enqueue("web", Trigger.PUSH)
        await measured.kept.finish(failed.id, Outcome.FAILED, 60.0)
    assert (await measured.samples())["hookdeploy_last_success_timestamp_seconds"] == {("web",): 50.0}
    await measured.deployed(Outcome.FAILED)
    assert (await measured.samples())["hookdeploy_last_success_timestamp_seconds"] == {("web",): 50.0}
    await measured.deployed()
    assert (await measured.samples())["hookdeploy_last_success_timestamp_seconds"] == {("web",): 106.0}


@pytest_twisted.ensureDeferred
async def test_a_restart_is_one_of_a_server_that_ended_by_itself(measured: Measured, app: StillApp) -> None:
    for state in ("starting", "serving", "restarting", "restarting", "starting", "serving"):
        app.server = StatedServer(ServerStatus(state, 0.0))
        measured.changes.publish(Kind.APP, "web")
    found = await measured.samples()
    assert found["hookdeploy_server_restarts_total"] == {("web",): 1.0}
    assert found["hookdeploy_server_up"] == {("web",): 1.0}
    app.server = StatedServer(ServerStatus("restarting", 0.0))
    assert (await measured.samples())["hookdeploy_server_up"] == {("web",): 0.0}


@pytest_twisted.ensureDeferred
async def test_what_waits_and_what_a_person_holds_back_is_told(measured: Measured, app: StillApp) -> None:
    running = Deployment("1", "web", Trigger.PUSH, Phase.BUILDING, queued_at=10.0)
    waiting = Deployment("2", "web", Trigger.PUSH, Phase.QUEUED, queued_at=70.0)
    app.lane, app.held = StillLane(running, [running, waiting]), Steering(paused=True)
    found = await measured.samples()
    assert found["hookdeploy_deployments_waiting"] == {("web",): 1.0}
    assert found["hookdeploy_oldest_waiting_seconds"] == {("web",): 30.0}
    assert found["hookdeploy_lane_state"] == {("web", "idle"): 0, ("web", "waiting"): 0, ("web", "deploying"): 1}
    assert found["hookdeploy_app_paused"] == {("web",): 1.0}
    assert found["hookdeploy_app_pinned"] == {("web",): 0.0}


@pytest_twisted.ensureDeferred
async def test_a_reactor_that_is_late_is_seen(measured: Measured) -> None:
    measured.clock.advance(BEAT)
    measured.clock.advance(BEAT + 0.2)
    found = await measured.samples()
    assert found["hookdeploy_event_loop_lag_seconds_count"] == {(): 2.0}
    assert found["hookdeploy_event_loop_lag_seconds_sum"][()] == pytest.approx(0.2)
    assert found["hookdeploy_event_loop_lag_seconds_bucket"]["0.1",] == 1.0


@pytest_twisted.ensureDeferred
async def test_a_journal_that_is_out_of_order_hides_no_more_than_what_only_it_knows(measured: Measured) -> None:
    await measured.deployed()
    measured.rows = JournalUnavailable("disk I/O error")
    found = await measured.samples()
    assert "hookdeploy_journal_rows" not in found
    assert found["hookdeploy_requests_refused_total"] == {("401",): 7.0}
    assert found["hookdeploy_deliveries_total"] == {("github", "accepted"): 2.0}


@pytest_twisted.ensureDeferred
async def test_who_accepts_openmetrics_gets_it(measured: Measured) -> None:
    await measured.deployed()
    measured.metrics.drained("web", 0.5)
    text, kind = await measured.metrics.text("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(text.decode())} >= {"hookdeploy_drain_seconds"}
    for accept in ("", "*/*", "text/html, \x00\xff"):
        assert (await measured.metrics.text(accept))[1] == "text/plain; version=0.0.4; charset=utf-8"


@pytest_twisted.ensureDeferred
async def test_the_time_of_each_commit_of_the_journal_is_measured(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.sqlite3") as journal:
        await journal.enqueue("web", Trigger.MANUAL)
        await journal.enqueue("web", Trigger.MANUAL)
        assert journal.commit_times.within[-1] == journal.commits >= 2
        assert (await journal.rows()) == {"deployments": 2, "deliveries": 0, "parked": 0}


# The whole of it.


def scraped(hookdeploy: Hookdeploy) -> Samples:
    return samples(hookdeploy.metrics())


def test_a_run_is_counted_right_and_at_the_dashboards_port_the_token_is_asked_for(
    tmp_path: Path, origin: Origin
) -> None:
    """A run with one push deployed and one failed."""
    (tmp_path / "build.sh").write_text(f"test ! -e {tmp_path}/broken\n")
    listen = '[dashboard]\nlisten = ["tcp:PAGE_PORT:interface=127.0.0.1"]\n'
    config = RELEASE.replace("[hooks.github]", f"{listen}[hooks.github]") + 'build = ["sh DIRECTORY/build.sh"]\n'
    with put_away(Hookdeploy(tmp_path, config=config)) as hookdeploy:
        hookdeploy.start()
        hookdeploy.first()
        good = hookdeploy.ended(hookdeploy.announce(origin.push(site("two"))))
        (tmp_path / "broken").touch()
        bad = hookdeploy.ended(hookdeploy.announce(origin.push(site("three"))))
        assert (good["outcome"], bad["outcome"]) == ("deployed", "failed")
        hookdeploy.ask("POST", hookdeploy.hook_path, content=b"{}", headers={"Content-Type": "application/json"})
        hookdeploy.ask("GET", "/nothing")
        until(lambda: "hookdeploy_drain_seconds_count" in scraped(hookdeploy), "end of the first server")
        found = scraped(hookdeploy)
        url, token = f"http://127.0.0.1:{hookdeploy.page_port}/metrics", (hookdeploy.state / "token").read_text()
        refused = httpx.get(url, timeout=PATIENCE, trust_env=False)
        bearer = {"Authorization": f"Bearer {token.strip()}"}
        answer = httpx.get(url, timeout=PATIENCE, trust_env=False, headers=bearer)
    assert refused.status_code == 401
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert samples(answer.text)["hookdeploy_server_up"] == {("web",): 1.0}
    assert found["hookdeploy_deployments_total"] == {
        ("web", "deployed", "start"): 1.0,
        ("web", "deployed", "push"): 1.0,
        ("web", "failed", "push"): 1.0,
    }
    assert found["hookdeploy_deliveries_total"] == {("github", "accepted"): 2.0}
    assert found["hookdeploy_requests_refused_total"] == {("401",): 1.0, ("404",): 1.0}
    assert found["hookdeploy_deployment_phase_seconds_count"]["web", "building"] == 3.0
    assert found["hookdeploy_deployment_phase_seconds_count"]["web", "swapping"] == 2.0
    assert found["hookdeploy_deployment_seconds_count"] == {("web", "deployed"): 2.0, ("web", "failed"): 1.0}
    assert found["hookdeploy_server_up"] == {("web",): 1.0}
    assert found["hookdeploy_drain_seconds_count"] == {("web",): 1.0}
    assert found["hookdeploy_journal_rows"]["deployments",] == 3.0
    assert found["hookdeploy_journal_commit_seconds_count"][()] > 10
    assert found["hookdeploy_state_free_bytes"][()] > 0
    assert found["process_resident_memory_bytes"][()] > 1e6
