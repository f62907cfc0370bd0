"""The log of the program itself: nothing in it is a secret or a trick, and each event is one, whoever reads it."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn, cast

from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher, textFileLogObserver
from twisted.python import log as older_log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.installed import Hookdeploy, Origin, site
from tests.waiting import until
from twisted_hook.logformat import JsonLines, Masking, as_json, chosen
from twisted_hook.redaction import Redactor

CANARY = 'canary "with" quotes\nand a second line'


class Unsayable:
    """A field that cannot be shown."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")

    __repr__ = __str__


class Said:
    """A field that is shown by its own words."""

    def __str__(self) -> str:
        return f"it is {CANARY}"


def fail() -> Failure:
    try:
        raise ValueError(f"{CANARY}\x1b[2J\r2026-01-01T00:00:00+0000 [all#info] is well")
    except ValueError:
        return Failure()


class Logged(SynchronousTestCase):
    """What two observers write behind one that masks."""

    def setUp(self) -> None:
        self.text, self.lines = StringIO(), StringIO()
        publisher = LogPublisher(Masking(Redactor([CANARY]).text), textFileLogObserver(self.text))
        publisher.addObserver(JsonLines(self.lines))
        self.publisher = publisher
        self.log = Logger("hookdeploy.test", observer=publisher)

    def line(self) -> dict[str, Any]:
        """The only line of JSON."""
        [line] = self.lines.getvalue().splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def starts(self) -> int:
        """How many lines of the text begin an event, as people and programs tell it."""
        return sum(not line.startswith("\t") for line in self.text.getvalue().splitlines())

    def test_an_event_is_a_line_with_its_own_fields(self) -> None:
        own = {"app": "blog", "deployment": "0a", "phase": "building", "n": [1, 2.5]}
        self.log.emit(LogLevel.info, "{app}: deployment {deployment} {phase}", **own)
        line = self.line()
        at = datetime.fromisoformat(line.pop("time"))
        self.assertLess(abs((datetime.now(UTC) - at).total_seconds()), 60)
        words = {"level": "info", "logger": "hookdeploy.test", "message": "blog: deployment 0a building"}
        self.assertEqual(line, {**words, **own})

    def test_a_secret_is_masked_wherever_it_stands(self) -> None:
        """P80, T39: in the words, in the fields and what they hold, in an exception's text, also across two fields."""
        self.log.error(
            "{one} {many} {said} {first}{second}",
            one=f"<{CANARY}>",
            many={"deep": [("a", {CANARY: CANARY})], "bytes": CANARY.encode()},
            said=Said(),
            first=CANARY[:9],
            second=CANARY[9:],
        )
        self.log.failure("it said {what}", fail(), what=CANARY)
        self.assertNotIn("canary", self.text.getvalue())
        said, failed = lines_of(self.lines.getvalue())
        self.assertEqual((said["one"], said["said"]), ("<[secret]>", "it is [secret]"))
        self.assertEqual(said["many"], {"deep": [["a", {"[secret]": "[secret]"}]], "bytes": "[secret]"})
        self.assertTrue(said["message"].endswith("it is [secret] [secret]"), said["message"])
        self.assertNotIn("canary", json.dumps({**said, "first": "half of one, and so none"}))
        self.assertNotIn("canary", json.dumps(failed))
        self.assertIn("ValueError: [secret]", failed["traceback"])

    def test_nothing_from_outside_begins_a_line(self) -> None:
        """P79: neither a new line nor what a terminal or a reader of logs would take for one."""
        for trick in ("\n", "\r", "\r\n", "\x0b", "\x85", "\u2028", "\x1b[2J\n"):
            self.log.info("{subject}", subject=f"harmless{trick}2026-01-01T00:00:00+0000 [all#info] is well")
        self.log.failure("it failed", fail())
        self.assertEqual(self.starts(), 8)
        self.assertEqual(len(self.lines.getvalue().splitlines()), 8)
        self.assertNotIn("\x1b", self.text.getvalue() + self.lines.getvalue())

    def test_a_field_that_cannot_be_shown_says_so(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        deep: Any = {}
        for _ in range(2000):
            deep = {"deeper": deep}
        odd = {"none": None, "nan": float("nan"), "lone": "\udcff", "large": 10**400, "absurd": 16**5000, "set": {1}}
        own = {"time": "mine", "traceback": 1, "loop": loop, "deep": deep}
        self.log.emit(LogLevel.info, "odd", unsayable=Unsayable(), **own, **odd)
        line = self.line()
        self.assertEqual(line["unsayable"], "what cannot be shown (Unsayable)")
        self.assertEqual((line["none"], line["nan"], line["large"], line["set"]), (None, "nan", 10**400, [1]))
        self.assertEqual((line["level"], line["traceback_"]), ("info", 1))
        self.assertEqual(line["absurd"], "what cannot be shown (int)")

    def test_an_event_without_anything_is_one_too(self) -> None:
        line = json.loads(as_json({}))
        self.assertEqual((line["time"], line["message"]), ("1970-01-01T00:00:00.000Z", ""))
        self.assertEqual(json.loads(as_json({"log_time": 1e300}))["level"], "info")

    def test_what_comes_by_the_older_log_is_masked_as_well(self) -> None:
        older = older_log.LogPublisher(self.publisher, self.publisher)
        older.msg(f"said {CANARY}", more=CANARY)
        self.assertNotIn("canary", self.text.getvalue() + self.lines.getvalue())
        self.assertIn("said [secret]", self.text.getvalue())

    def test_what_holds_no_secret_stays_what_it_is(self) -> None:
        seen: list[Any] = []
        self.publisher.addObserver(cast("ILogObserver", seen.append))
        failure, path = Failure(ValueError("harmless")), Path("/etc")
        self.log.failure("{path}", failure, path=path, n=3)
        self.assertIs(seen[0]["log_failure"], failure)
        self.assertIs(seen[0]["path"], path)


class Chosen(SynchronousTestCase):
    """Who writes the log."""

    def test_what_the_user_of_twistd_has_chosen_stays_chosen(self) -> None:
        for given in ({"logger": "some.thing"}, {"syslog": True}):
            self.assertIsNone(chosen("json", {"nodaemon": True, **given}, {}))
        self.assertIsNone(chosen("text", {"nodaemon": True}, {}))


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_deployment_is_told_phase_by_phase_with_its_ids(release: Hookdeploy, origin: Origin) -> None:
    """From the line of a phase one comes to the delivery that has led to it."""
    release.change_environ({"HOOKDEPLOY_LOG_FORMAT": "json"})
    release.start()
    release.first()
    done = release.ended(release.announce(origin.push(site("two"))))
    release.stop()
    told = [line for line in lines_of(release.log) if line.get("deployment") == done["id"]]
    phases = [line["phase"] for line in told if "phase" in line]
    assert phases == ["fetching", "building", "starting", "checking", "swapping"]
    assert {(line["app"], line["delivery"], line["level"]) for line in told} == {("web", done["delivery"], "info")}
    assert f"queued for delivery {done['delivery']}" in told[0]["message"]
    assert told[-1]["outcome"] == "deployed"


def test_json_goes_to_the_file_that_is_chosen_and_that_is_rotated_as_one_of_text(release: Hookdeploy) -> None:
    release.change_environ({"HOOKDEPLOY_LOG_FORMAT": "json"})
    chosen_file = release.directory / "chosen.log"
    release.options = (f"--logfile={chosen_file}",)
    release.start()
    release.first()
    former = chosen_file.with_name("chosen.log.1")
    os.kill(release.pid, signal.SIGUSR1)
    until(former.exists, "rotation")
    release.stop()
    assert release.log == ""
    assert any("takes hooks on" in line["message"] for line in lines_of(former.read_text()))
    assert lines_of(chosen_file.read_text())[-1]["message"] == "Server Shut Down."


def test_a_format_that_there_is_not_is_no_start(release: Hookdeploy) -> None:
    release.change_environ({"HOOKDEPLOY_LOG_FORMAT": "yaml"})
    done = release.run()
    assert done.returncode == 1
    assert "--log-format: must be one of text, json" in done.stdout + done.stderr
