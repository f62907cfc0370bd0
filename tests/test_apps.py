"""One app put together: what persons ask of it at the same time."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import MemoryRunner
from tests.fakes import MemoryJournal
from twisted_hook.apps import App, Tools
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig
from twisted_hook.model import Refused, Steering
from twisted_hook.once import Once
from twisted_hook.redaction import Redactor


class SlowJournal(MemoryJournal):
    """One whose every look at how an app is held back takes until ``looked`` happens."""

    def __init__(self) -> None:
        super().__init__()
        self.looked: Once[None] = Once()

    async def steering(self, app: str) -> Steering:
        found = await super().steering(app)
        await self.looked.wait()
        return found


def app_of(journal: MemoryJournal, state: Path) -> App:
    clock = Clock()
    tools = Tools(
        reactor=cast("Any", clock),
        journal=journal,
        runner=MemoryRunner(),
        state=state,
        ambient=Ambient("/usr/bin", "/", "C", None, {}),
        now=clock.seconds,
        redactor=Redactor(()),
    )
    return App(tools, AppConfig(name="web", hook="web", repository="https://example.com/web.git"), None)


class SteeringTests(SynchronousTestCase):
    def test_a_rollback_of_what_nobody_knows_any_more_is_refused_and_no_bug(self) -> None:
        """The record of the current release is lost, and its commit is not in the mirror."""
        place = TemporaryDirectory()
        self.addCleanup(place.cleanup)
        directory = Path(place.name) / "apps/web"
        (directory / "releases/1-abcdef0").mkdir(parents=True)
        (directory / "current").symlink_to("releases/1-abcdef0")
        app = app_of(MemoryJournal(), Path(place.name))
        refused = self.failureResultOf(Deferred.fromCoroutine(app.roll_back()), Refused)
        self.assertIn("git gave no commit id", refused.value.reason)

    def test_two_who_hold_it_back_at_once_do_not_undo_each_other(self) -> None:
        journal = SlowJournal()
        app = app_of(journal, Path("/no/such/place"))
        asked = [Deferred.fromCoroutine(app.pin()), Deferred.fromCoroutine(app.pause())]
        journal.looked.happen(None)
        for each in asked:
            self.successResultOf(each)
        steering = self.successResultOf(Deferred.fromCoroutine(journal.steering("web")))
        self.assertEqual(steering, Steering(paused=True, pinned=True))
