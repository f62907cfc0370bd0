"""The story of a deployment: what it does in which order, and what every kind of failure leaves behind."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import replace
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import HeardEvents, MemoryCheckout, MemoryEnvironments, MemoryLog, MemoryRunner, MemoryServer, commit
from tests.fakes import MemoryJournal
from twisted_hook.builders import Builders
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.deploy import Deploying
from twisted_hook.model import (
    Deployment,
    JournalUnavailable,
    Launch,
    NoRoom,
    Outcome,
    Phase,
    ProbationFailed,
    Steering,
    StepFailed,
    Trigger,
)
from twisted_hook.story import Story

T = TypeVar("T")
AMBIENT = Ambient("/usr/bin", "/home/blog", "C.UTF-8", "/run/agent", {"http_proxy": "http://proxy"})
STEPS = (
    StepConfig("collect", ("make", "static files")),
    StepConfig("migrate", ("manage", "migrate"), timeout=5.0, env={"MODE": "once"}),
)


class StoryCase(SynchronousTestCase):
    """An app with two steps, of which the commit a is deployed first."""

    def setUp(self) -> None:
        self.time = 100.0
        self.journal = MemoryJournal()
        self.runner = MemoryRunner()
        self.checkout = MemoryCheckout(commit("a"))
        self.environments = MemoryEnvironments(Path("/venv"))
        self.server = MemoryServer()
        self.logs: dict[str, MemoryLog] = {}
        heard = HeardEvents()
        self.events = heard.events
        self.patch(Deploying, "_logger", Logger(observer=heard))
        self.story = Story(
            app=AppConfig(name="blog", hook="blog", branch="main", build=STEPS, wsgi="wsgi:application", probation=0.0),
            journal=self.journal,
            runner=self.runner,
            checkout=self.checkout,
            environments=self.environments,
            server=self.server,
            open_log=lambda deployment: self.logs.setdefault(deployment, MemoryLog()),
            declared=self.declared,
            ambient=AMBIENT,
            now=lambda: self.time,
            shown=lambda text: text,
        )

    def declared(self) -> Mapping[str, str]:
        return {"COLOUR": "red"}

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def written(self, deployment: Deployment) -> Deployment:
        now = self.result(self.journal.deployment(deployment.id))
        assert now is not None
        return now

    async def whole(self, deployment: Deployment) -> None:
        """What a lane does."""
        deploying = Deploying(self.story, deployment)
        tree = await deploying.obtain()
        if tree is not None:
            await deploying.release(tree)

    def begin(self) -> tuple[Deployment, Deferred[None]]:
        """A deployment that may not have ended yet."""
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        return deployment, Deferred.fromCoroutine(self.whole(deployment))

    def deploy(self) -> Deployment:
        """A deployment from its beginning to its end, as the journal has it then."""
        deployment, ended = self.begin()
        self.successResultOf(ended)
        self.assertTrue(self.logs[deployment.id].closed, "the log of an ended deployment is open")
        return self.written(deployment)

    def revision(self) -> str | None:
        """What the server serves."""
        return self.server.launch.tree.commit.revision if self.server.launch else None

    def told(self) -> list[str]:
        """The lines of hookdeploy's own log."""
        return [str(event["log_format"]).format(**event) for event in self.events]


class TheHappyPath(StoryCase):
    """fetch, build, start, check, swap."""

    def test_the_phases_come_in_order(self) -> None:
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.DEPLOYED, done.reason)
        self.assertEqual(
            [phase for phase, _ in done.phases],
            [Phase.FETCHING, Phase.BUILDING, Phase.STARTING, Phase.CHECKING, Phase.SWAPPING, Phase.DONE],
        )
        self.assertEqual(done.phase, Phase.DONE)

    def test_the_commit_the_release_and_what_ran_before_are_written(self) -> None:
        self.deploy()
        self.checkout.tip = commit("b")
        done = self.deploy()
        self.assertEqual((done.revision, done.previous), ("b" * 40, "a" * 40))
        self.assertEqual((done.subject, done.author, done.release), ("commit b", "Ada", "2-bbbbbbb"))

    def test_the_steps_are_written_with_their_commands(self) -> None:
        done = self.deploy()
        self.assertEqual(
            [(step.name, step.command, step.status) for step in done.steps],
            [("collect", "make static files", "ok"), ("migrate", "manage migrate", "ok")],
        )

    def test_the_server_gets_the_tree_and_the_tree_is_kept(self) -> None:
        self.deploy()
        self.assertEqual(self.revision(), "a" * 40)
        self.assertEqual(self.checkout.served, self.checkout.trees[0])
        self.assertEqual(self.checkout.calls, ["fetch", "current", "take", "keep", "retire"])

    def test_the_log_has_the_line_of_the_tutorial(self) -> None:
        self.deploy()
        self.assertIn("Repository updated with commit aaaaaa", self.told())

    def test_the_deployments_own_log_has_the_commands_and_what_they_print(self) -> None:
        self.runner.prints = {"git fetch": b"From origin\n", "collect": b"3 files\n"}
        log = self.logs[self.deploy().id]
        self.assertEqual(log.output, b"From origin\n3 files\n")
        self.assertEqual(
            log.headings,
            [
                "-- fetching",
                "$ git fetch",
                "-- building",
                "$ collect",
                "$ migrate",
                "-- starting",
                "-- checking",
                "-- swapping",
                "deployed",
            ],
        )

    def test_steps_run_in_the_tree_within_their_time(self) -> None:
        self.deploy()
        collect, migrate = self.runner.commands[1:]
        self.assertEqual({collect.cwd, migrate.cwd}, {Path("/releases/1-aaaaaaa")})
        self.assertEqual((collect.timeout, migrate.timeout), (900.0, 5.0))

    def test_an_app_without_a_server_is_only_built(self) -> None:
        self.story = replace(self.story, server=None)
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.DEPLOYED)
        self.assertEqual([phase for phase, _ in done.phases], [Phase.FETCHING, Phase.BUILDING, Phase.DONE])
        self.assertEqual(self.checkout.served, self.checkout.trees[0])

    def test_an_automatic_build_has_no_steps(self) -> None:
        self.story = replace(self.story, app=replace(self.story.app, build="auto"))
        self.assertEqual(self.deploy().steps, ())
        self.assertEqual(self.environments.calls, ["prepare"])


class WhatTheCommandsSee(StoryCase):
    """P80: nothing but what is promised."""

    def test_steps_see_exactly_the_promised_variables(self) -> None:
        done = self.deploy()
        collect, migrate = self.runner.commands[1:]
        promised = {
            "PATH": "/usr/bin",
            "HOME": "/home/blog",
            "LANG": "C.UTF-8",
            "COLOUR": "red",
            "HOOKDEPLOY_APP": "blog",
            "HOOKDEPLOY_REVISION": "a" * 40,
            "HOOKDEPLOY_PREVIOUS": "",
            "HOOKDEPLOY_BRANCH": "main",
            "HOOKDEPLOY_RELEASE": "1-aaaaaaa",
            "HOOKDEPLOY_DEPLOYMENT": done.id,
        }
        self.assertEqual(collect.env, promised)
        self.assertEqual(migrate.env, {**promised, "MODE": "once"})
        self.assertEqual(self.environments.seen, [promised])

    def test_the_server_sees_the_same_and_its_virtual_environment_first(self) -> None:
        self.deploy()
        assert self.server.launch is not None
        expected = {**self.runner.commands[1].env, "PATH": "/venv/bin:/usr/bin", "VIRTUAL_ENV": "/venv"}
        self.assertEqual(self.server.launch.env, expected)

    def test_a_server_without_a_virtual_environment_sees_what_the_steps_see(self) -> None:
        self.environments = MemoryEnvironments()
        self.story = replace(self.story, environments=self.environments)
        self.deploy()
        assert self.server.launch is not None
        self.assertEqual(self.server.launch.env, self.runner.commands[1].env)

    def test_steps_see_what_runs_while_they_build(self) -> None:
        self.deploy()
        self.checkout.tip = commit("b")
        self.deploy()
        self.assertEqual(self.runner.commands[-1].env["HOOKDEPLOY_PREVIOUS"], "a" * 40)


class Failures(StoryCase):
    """While commit a serves, the deployment of commit b fails."""

    def setUp(self) -> None:
        super().setUp()
        self.deploy()
        self.good = self.server.launch
        self.checkout.tip = commit("b")
        for told in (self.checkout, self.server, self.environments):
            told.calls.clear()

    def failed(self, *words: str) -> Deployment:
        """What is the same after every failure."""
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.FAILED)
        for word in words:
            self.assertIn(word, done.reason)
        self.assertEqual(self.server.launch, self.good, "the server is not as it was")
        self.assertEqual([tree.commit for tree in self.checkout.trees], [commit("a")], "a failed tree is left")
        self.assertEqual(self.checkout.served, self.checkout.trees[0], "the current tree is not as it was")
        self.assertIn(f"failed: {done.reason}", self.logs[done.id].headings)
        return done

    def test_the_remote_cannot_be_fetched(self) -> None:
        """P66."""
        self.checkout.failing["fetch"] = StepFailed("branch main could not be fetched: ref gone", tail="fatal: no ref")
        done = self.failed("branch main could not be fetched: ref gone\nfatal: no ref")
        self.assertEqual(done.phase, Phase.FETCHING)
        self.assertEqual(self.checkout.calls, ["fetch"])

    def test_the_tree_cannot_be_had(self) -> None:
        self.checkout.failing["take"] = StepFailed("bbbbbbb could not be checked out")
        self.assertEqual(self.failed("could not be checked out").revision, "b" * 40)

    def test_a_step_ends_badly(self) -> None:
        """P76."""
        self.runner.status["collect"] = 2
        self.runner.prints["collect"] = b"no rule to make target\n"
        done = self.failed("step 'collect' failed: exit 2\nno rule to make target")
        self.assertEqual([(step.name, step.status) for step in done.steps], [("collect", "exit 2")])
        self.assertEqual(done.phase, Phase.BUILDING)
        self.assertIn("collect: exit 2", self.logs[done.id].headings)
        self.assertNotIn("prepare", self.environments.calls)

    def test_the_environment_cannot_be_made(self) -> None:
        self.environments.failing["prepare"] = StepFailed("pip install failed: exit 1")
        self.failed("pip install failed: exit 1")
        self.assertNotIn("swap", self.server.calls)

    def test_what_the_app_declares_cannot_be_read(self) -> None:
        def unreadable() -> Mapping[str, str]:
            raise StepFailed("env_file: blog.env: no such file")

        self.story = replace(self.story, declared=unreadable)
        self.failed("env_file: blog.env: no such file")

    def test_the_new_server_does_not_start(self) -> None:
        """P81."""
        self.server.failing["swap"] = StepFailed("the new server did not start", tail="ImportError: no module")
        done = self.failed("the new server did not start\nImportError: no module")
        self.assertEqual(done.phase, Phase.CHECKING)
        self.assertNotIn("keep", self.checkout.calls)

    def test_the_tree_cannot_be_kept_and_what_served_serves_on(self) -> None:
        """P86."""
        self.checkout.failing["keep"] = StepFailed("current is a real directory")
        self.failed("current is a real directory")
        self.assertEqual(len(self.server.launches), 1)

    def test_a_tree_that_cannot_be_discarded_changes_nothing_of_the_failure(self) -> None:
        self.runner.status["collect"] = 2
        self.checkout.failing["discard"] = StepFailed("could not be removed")
        done = self.deploy()
        self.assertEqual((done.outcome, done.reason), (Outcome.FAILED, "step 'collect' failed: exit 2"))

    def test_a_full_disk_is_named(self) -> None:
        """P84."""
        self.checkout.failing["take"] = OSError(28, "No space left on device")
        self.failed("No space left on device")

    def test_a_bug_in_a_tool_ends_the_deployment_and_is_logged(self) -> None:
        self.environments.failing["prepare"] = ZeroDivisionError("division by zero")
        self.failed("ZeroDivisionError", "hookdeploy's own log has the traceback")
        [event] = [event for event in self.events if event["log_level"] is LogLevel.critical]
        self.assertIn("ZeroDivisionError", event["log_failure"].getTraceback())

    def test_a_bug_in_keeping_brings_back_what_served(self) -> None:
        self.checkout.failing["keep"] = ZeroDivisionError("division by zero")
        self.failed("ZeroDivisionError")

    def test_a_failed_revision_that_is_delivered_again_is_tried_again(self) -> None:
        """P53."""
        self.runner.status["collect"] = 2
        self.failed()
        self.runner.status.clear()
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)
        self.assertEqual(self.revision(), "b" * 40)

    def test_the_commit_before_a_failed_one_is_known_to_run(self) -> None:
        self.runner.status["collect"] = 2
        self.failed()
        self.checkout.tip = commit("a")
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)


class Secrets(StoryCase):
    """P75: what the journal and the log get is masked."""

    def setUp(self) -> None:
        super().setUp()
        secret = StepConfig("curl hunter22", ("curl", "--user", "me:hunter22"))
        self.story = replace(
            self.story,
            app=replace(self.story.app, build=(secret,)),
            shown=lambda text: text.replace("hunter22", "[secret]"),
        )

    def test_a_command_is_written_with_its_secrets_masked(self) -> None:
        [step] = self.deploy().steps
        self.assertEqual((step.name, step.command), ("curl [secret]", "curl --user me:[secret]"))
        self.assertEqual(self.runner.commands[-1].argv, ("curl", "--user", "me:hunter22"))

    def test_a_reason_is_written_and_told_with_its_secrets_masked(self) -> None:
        self.runner.status["curl hunter22"] = 6
        self.runner.prints["curl hunter22"] = b"could not reach hunter22\n"
        done = self.deploy()
        self.assertEqual(done.reason, "step 'curl [secret]' failed: exit 6\ncould not reach [secret]")
        self.assertNotIn("hunter22", repr(self.events))

    def test_the_words_of_a_bug_are_masked(self) -> None:
        self.environments.failing["prepare"] = KeyError("hunter22")
        self.assertIn("KeyError('[secret]')", self.deploy().reason)


class JournalsThatFail(StoryCase):
    """P84."""

    def test_a_deployment_knows_whether_its_end_is_written(self) -> None:
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        deploying = Deploying(self.story, deployment)
        tree = self.result(deploying.obtain())
        assert tree is not None
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.result(deploying.release(tree))
        self.assertFalse(deploying.ended)
        self.assertTrue(self.logs[deployment.id].closed)
        self.assertIn("the disk is full", self.told()[-1])
        self.journal.fail_with = None
        del self.logs[deployment.id]
        again = Deploying(self.story, deployment)
        tree = self.result(again.obtain())
        assert tree is not None
        self.result(again.release(tree))
        self.assertTrue(again.ended)
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)

    def test_what_was_cut_off_is_never_taken_for_what_runs_already(self) -> None:
        """P83: its tree may be half built, and served after a new start all the same."""
        self.deploy()
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.result(self.journal.begin(deployment.id, 0.0))
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)


class TreesThatServe(StoryCase):
    """A tree is not taken away from under the server."""

    def test_one_that_cannot_be_kept_is_not_discarded_while_its_server_ends(self) -> None:
        self.checkout.failing["keep"] = StepFailed("current is a real directory")
        self.patch(MemoryServer, "in_use", frozenset({"1-aaaaaaa"}))
        self.assertEqual(self.deploy().outcome, Outcome.FAILED)
        self.assertIsNone(self.revision())
        self.assertEqual([tree.commit for tree in self.checkout.trees], [commit("a")])

    def test_a_first_tree_that_does_not_start_is_discarded(self) -> None:
        self.server.failing["swap"] = StepFailed("the new server did not start")
        self.assertEqual(self.deploy().outcome, Outcome.FAILED)
        self.assertEqual(self.checkout.trees, [])


class Unchanged(StoryCase):
    """The tip runs already."""

    def test_the_same_tip_again_is_unchanged(self) -> None:
        self.deploy()
        done = self.deploy()
        self.assertEqual((done.outcome, done.reason), (Outcome.UNCHANGED, "aaaaaaa runs already"))
        self.assertEqual(len(self.server.launches), 1)
        self.assertEqual(self.checkout.calls.count("take"), 1)

    def test_a_server_that_is_down_is_started_by_the_same_tip(self) -> None:
        self.deploy()
        self.server.state = "restarting"
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)
        self.assertEqual(len(self.server.launches), 2)

    def test_an_app_without_a_server_is_unchanged_too(self) -> None:
        self.story = replace(self.story, server=None)
        self.deploy()
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)

    def test_an_app_without_a_server_whose_last_deployment_failed_is_built_again(self) -> None:
        self.story = replace(self.story, server=None)
        self.deploy()
        self.checkout.tip = commit("b")
        self.runner.status["collect"] = 1
        self.deploy()
        self.runner.status.clear()
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_clone_that_is_at_a_failed_commit_already_is_built_again(self) -> None:
        """P53. In place the tree has its new commit before anything is built."""
        self.story = replace(self.story, server=None)
        original = self.checkout.take

        async def in_place(run: Any, tip: Any) -> Any:
            self.checkout.served = await original(run, tip)
            return self.checkout.served

        self.patch(self.checkout, "take", in_place)
        self.runner.status["collect"] = 1
        self.assertEqual(self.deploy().outcome, Outcome.FAILED)
        self.runner.status.clear()
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_clone_that_rebasing_does_not_change_is_unchanged(self) -> None:
        """In place what is checked out is not always what was fetched: a clone may have commits of its own."""
        ours = replace(commit("c"), subject="a local commit on top")
        original = self.checkout.take

        async def rebased(run: Any, _: Any) -> Any:
            return await original(run, ours)

        self.patch(self.checkout, "take", rebased)
        self.assertEqual(self.deploy().revision, "c" * 40)
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)
        self.assertEqual(len(self.server.launches), 1)
        self.assertEqual(self.checkout.calls[-2:], ["take", "discard"])

    def test_a_clone_whose_commit_serves_and_fails_to_be_built_again_has_no_way_back(self) -> None:
        """In place the tree is the very one that serves, and a person may commit to it next."""
        self.deploy()

        async def the_same(run: Any, _: Any) -> Any:
            return self.checkout.trees[0]

        self.patch(self.checkout, "take", the_same)
        self.runner.status["collect"] = 1
        asked = self.result(self.journal.enqueue("blog", Trigger.MANUAL))
        self.result(self.whole(asked))
        self.assertEqual(self.written(asked).outcome, Outcome.FAILED)
        self.assertEqual(self.checkout.calls[-1], "discard")


class Spared(StoryCase):
    """A commit that changes nothing of the app, or asks not to be deployed."""

    def setUp(self) -> None:
        super().setUp()
        self.story = replace(self.story, app=replace(self.story.app, paths=("blog/**", "!*.md")))
        self.deploy()
        self.checkout.tip = commit("b")
        self.checkout.untouched = True

    def ask(self, trigger: Trigger) -> Deployment:
        asked = self.result(self.journal.enqueue("blog", trigger))
        self.result(self.whole(asked))
        return self.written(asked)

    def say_skip(self) -> None:
        self.checkout.untouched = False
        self.checkout.tip = replace(commit("b"), skips="[skip deploy]")

    def test_one_that_changes_nothing_is_unchanged_and_says_why(self) -> None:
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.UNCHANGED)
        self.assertEqual(
            done.reason,
            "bbbbbbb changes nothing of blog/**, !*.md since aaaaaaa; hookdeploy deploy blog deploys it all the same",
        )
        self.assertEqual((done.revision, done.previous, done.release), ("b" * 40, "a" * 40, None))
        self.assertEqual((self.revision(), self.checkout.calls.count("take")), ("a" * 40, 1))

    def test_one_that_asks_for_it_is_unchanged_and_says_why(self) -> None:
        self.say_skip()
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.UNCHANGED)
        self.assertEqual(
            done.reason, "bbbbbbb has a message that says [skip deploy]; hookdeploy deploy blog deploys it all the same"
        )
        self.assertNotIn("touches", self.checkout.calls)

    def test_one_that_changes_something_is_deployed(self) -> None:
        self.checkout.untouched = False
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_without_paths_nothing_is_asked(self) -> None:
        self.story = replace(self.story, app=replace(self.story.app, paths=()))
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)
        self.assertNotIn("touches", self.checkout.calls)

    def test_the_poll_and_a_replay_find_the_same(self) -> None:
        for trigger in (Trigger.PUSH, Trigger.POLL, Trigger.REPLAY):
            self.assertEqual(self.ask(trigger).outcome, Outcome.UNCHANGED)

    def test_what_is_asked_for_is_deployed_all_the_same(self) -> None:
        for trigger in (Trigger.MANUAL, Trigger.START):
            self.say_skip()
            self.assertEqual(self.ask(trigger).outcome, Outcome.DEPLOYED)

    def test_a_way_back_is_gone_all_the_same(self) -> None:
        self.ask(Trigger.MANUAL)
        self.assertEqual(self.revision(), "b" * 40)
        self.assertEqual(self.ask(Trigger.ROLLBACK).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.revision(), "a" * 40)

    def test_what_was_put_back_says_so_first(self) -> None:
        self.ask(Trigger.MANUAL)
        self.ask(Trigger.ROLLBACK)
        self.assertIn("was put back", self.deploy().reason)

    def test_a_pinned_app_says_so_first(self) -> None:
        self.result(self.journal.steer("blog", Steering(pinned=True)))
        self.assertIn("pinned", self.deploy().reason)
        self.assertNotIn("touches", self.checkout.calls)

    def test_a_server_that_is_down_gets_what_comes(self) -> None:
        """What would mend it may lie outside of the app's paths."""
        self.server.state = "down"
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_server_that_is_down_stays_so_if_the_commit_asks_for_it(self) -> None:
        self.server.state = "down"
        self.say_skip()
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)

    def test_a_server_that_has_another_commit_than_the_current_tree_gets_what_comes(self) -> None:
        """In place a person may have moved the clone: what runs is not what is there."""
        current = self.checkout.served
        assert current is not None
        self.checkout.served = replace(current, commit=commit("c"))
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_person_who_has_pulled_the_commit_has_it_served(self) -> None:
        current = self.checkout.served
        assert current is not None
        self.say_skip()
        self.checkout.served = replace(current, commit=commit("b"))
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_an_app_without_a_server_is_spared_too(self) -> None:
        self.story = replace(self.story, server=None)
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)
        self.say_skip()
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)

    def test_the_first_is_deployed_whatever_it_changes_and_asks(self) -> None:
        self.checkout.served = None
        self.say_skip()
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_clone_that_was_never_built_is_built(self) -> None:
        """A push may have taken the place of the start that would have built it."""
        self.journal = MemoryJournal()
        self.logs.clear()
        clone = replace(self.story.app, mode="in-place", path=Path("/srv/blog"))
        self.story = replace(self.story, journal=self.journal, app=clone)
        self.say_skip()
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_a_release_was_built_though_the_journal_has_forgotten_it(self) -> None:
        self.journal = MemoryJournal()
        self.logs.clear()
        self.story = replace(self.story, journal=self.journal)
        self.say_skip()
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)

    def test_one_that_takes_the_place_of_what_somebody_wanted_is_deployed(self) -> None:
        """Such as what a reload with other steps has asked for."""
        for trigger, outcome in (
            (Trigger.START, Outcome.DEPLOYED),
            (Trigger.MANUAL, Outcome.DEPLOYED),
            (Trigger.PUSH, Outcome.UNCHANGED),
        ):
            wish = self.result(self.journal.enqueue("blog", trigger))
            deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
            self.result(self.journal.supersede({wish.id: deployment.id}, 1.0))
            self.say_skip()
            self.checkout.served = self.checkout.trees[0]
            self.result(self.whole(deployment))
            ended = self.written(deployment)
            self.assertEqual((ended.outcome, ended.previous), (outcome, "a" * 40), trigger)

    def test_a_failure_to_compare_ends_the_deployment_only(self) -> None:
        self.checkout.failing["touches"] = StepFailed("the mirror could not be read")
        done = self.deploy()
        self.assertEqual((done.outcome, done.reason), (Outcome.FAILED, "the mirror could not be read"))
        self.assertEqual(self.revision(), "a" * 40)

    def cut_off(self, *, untouched: bool) -> Deployment:
        """One that was being built when hookdeploy stopped."""
        self.checkout.untouched = untouched
        held = self.runner.hold("collect")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.logs.clear()  # a new process opens them again
        del self.runner.waiting["collect"]
        held.happen(None)
        self.checkout.untouched = True
        return deployment

    def test_what_was_cut_off_after_it_was_found_to_be_due_is_brought_to_its_end(self) -> None:
        """P51. It may serve already, so that nothing differs any more."""
        deployment = self.cut_off(untouched=False)
        self.checkout.served = self.checkout.trees[-1]
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.revision(), "b" * 40)

    def test_and_so_is_one_with_local_commits_on_top(self) -> None:
        original = self.checkout.take

        async def rebased(run: Any, _: Any) -> Any:
            return await original(run, commit("c"))

        async def has(run: Any, revision: str, at: str | None = None) -> bool:
            return (revision, at) == ("b" * 40, "c" * 40)

        self.patch(self.checkout, "take", rebased)
        self.patch(self.checkout, "has", has)
        deployment = self.cut_off(untouched=False)
        self.checkout.served = self.checkout.trees[-1]
        self.result(self.server.start(Launch(self.checkout.served, self.environments.environment, {})))
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)

    def test_what_was_cut_off_and_has_a_newer_tip_is_judged_by_that(self) -> None:
        deployment = self.cut_off(untouched=False)
        self.checkout.tip = commit("c")
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.UNCHANGED)

    def test_what_was_cut_off_while_it_was_compared_is_compared_again(self) -> None:
        held = self.checkout.hold("touches")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.logs.clear()  # a new process opens them again
        del self.checkout.waiting["touches"]
        held.happen(None)
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.UNCHANGED)

    def test_what_was_covered_by_a_spared_one_is_covered(self) -> None:
        older = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        newer = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.result(self.journal.supersede({older.id: newer.id}, self.time))
        self.result(self.whole(newer))
        self.assertEqual(self.written(newer).outcome, Outcome.UNCHANGED)
        self.assertEqual((self.written(older).outcome, self.written(older).superseded_by), ("superseded", newer.id))


class AJournalThatFails(StoryCase):
    """A deployment whose words cannot be written."""

    def test_one_that_has_ended_already_is_not_run_again(self) -> None:
        """Its end was written, though whoever wrote it was told otherwise, or was being exchanged."""
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.result(self.journal.finish(deployment.id, Outcome.CANCELLED, 1.0))
        deploying = Deploying(self.story, deployment)
        self.assertIsNone(self.result(deploying.obtain()))
        self.assertTrue(deploying.ended)
        self.assertEqual((self.checkout.calls, self.written(deployment).outcome), ([], Outcome.CANCELLED))
        self.assertTrue(self.logs[deployment.id].closed)

    def test_one_that_cannot_begin_touches_nothing(self) -> None:
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.successResultOf(Deferred.fromCoroutine(self.whole(deployment)))
        self.assertEqual(self.checkout.calls, [])
        self.assertIn("blog: the journal: the disk is full", self.told())
        self.assertIsNone(self.written(deployment).outcome, "the next start takes it up")

    def test_one_that_a_new_journal_has_forgotten_is_looked_for_at_its_remote(self) -> None:
        """P84: it may have waited for its turn until long after the look that followed the recovery."""
        told: list[str] = []
        self.story = replace(self.story, try_again_later=lambda: told.append("later"))
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.journal._deployments.clear()
        self.successResultOf(Deferred.fromCoroutine(self.whole(deployment)))
        self.assertEqual((self.checkout.calls, told), ([], ["later"]))

    def test_one_that_loses_its_journal_while_it_builds_discards_its_tree(self) -> None:
        held = self.runner.hold("collect")
        deployment, ended = self.begin()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.successResultOf(ended)
        self.assertEqual(self.checkout.trees, [])
        self.assertIsNone(self.revision())
        self.assertIsNone(self.written(deployment).outcome)

    def test_one_whose_journal_comes_back_in_time_is_written_as_failed(self) -> None:
        original = self.journal.add_step

        async def fails_once(*_: Any) -> None:
            self.patch(self.journal, "add_step", original)
            raise JournalUnavailable("the disk is full")

        self.patch(self.journal, "add_step", fails_once)
        done = self.deploy()
        self.assertEqual((done.outcome, done.reason), (Outcome.FAILED, "the journal: the disk is full"))

    def test_one_that_serves_although_it_cannot_be_written_serves_on(self) -> None:
        held = self.server.hold("swap")
        _, ended = self.begin()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.successResultOf(ended)
        self.assertEqual(self.revision(), "a" * 40)
        self.assertEqual(self.checkout.served, self.checkout.trees[0])
        self.assertFalse([event for event in self.events if event["log_level"] is LogLevel.critical])


class Cancellation(StoryCase):
    """hookdeploy stops: the deployment stays unfinished, and the next start takes it up."""

    def cancelled(self, ended: Deferred[None], deployment: Deployment) -> None:
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.assertIsNone(self.written(deployment).outcome)
        self.assertTrue(self.logs[deployment.id].closed)
        self.assertIn("hookdeploy stops", self.logs[deployment.id].headings[-1])

    def test_while_it_fetches(self) -> None:
        self.checkout.hold("fetch")
        deployment, ended = self.begin()
        self.cancelled(ended, deployment)

    def test_while_a_step_runs(self) -> None:
        self.runner.hold("collect")
        deployment, ended = self.begin()
        self.cancelled(ended, deployment)
        self.assertEqual(self.environments.calls, [])

    def test_while_the_server_is_swapped(self) -> None:
        self.server.hold("swap")
        deployment, ended = self.begin()
        self.cancelled(ended, deployment)
        self.assertIsNone(self.checkout.served)

    def test_while_the_tree_is_kept(self) -> None:
        self.checkout.hold("keep")
        deployment, ended = self.begin()
        self.cancelled(ended, deployment)
        self.assertIsNone(self.revision())


class Resuming(StoryCase):
    """After a start of hookdeploy, and after a change of its configuration."""

    def test_there_is_nothing_to_resume_before_the_first_deployment(self) -> None:
        self.assertFalse(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.server.launches, [])

    def test_the_current_tree_is_served_with_its_environment(self) -> None:
        done = self.deploy()
        self.server = MemoryServer()
        self.story = replace(self.story, server=self.server)
        self.assertTrue(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.server.calls, ["start"])
        assert self.server.launch is not None
        self.assertEqual(self.server.launch.tree, self.checkout.served)
        self.assertEqual(self.server.launch.env["HOOKDEPLOY_DEPLOYMENT"], done.id)
        self.assertEqual(self.server.launch.env["PATH"], "/venv/bin:/usr/bin")

    def test_a_server_that_runs_is_swapped(self) -> None:
        self.deploy()
        self.assertTrue(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.server.calls, ["swap", "swap"])

    def left_behind(self, declared: Mapping[str, str]) -> None:
        """An earlier hookdeploy has left what it served, with the environment that was declared then."""
        self.story = replace(self.story, declared=lambda: declared)
        self.deploy()
        left, self.server = self.server.launch, MemoryServer()
        self.server.left = left
        self.story = replace(self.story, server=self.server)

    def test_what_was_left_running_serves_on(self) -> None:
        self.left_behind({"KEY": "old"})
        self.story = replace(self.story, ambient=replace(self.story.ambient, path="/opt/bin:/usr/bin"))
        self.assertTrue(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.server.calls, [])

    def test_what_was_left_running_is_swapped_if_another_environment_is_declared_now(self) -> None:
        for now in ({"KEY": "new"}, {}, {"KEY": "old", "MORE": ""}):
            self.left_behind({"KEY": "old"})
            self.story = replace(self.story, declared=partial(dict, now))
            self.assertTrue(self.result(self.story.resume(DeferredLock())))
            self.assertEqual(self.server.calls, ["swap"], now)
            self.assertEqual(self.server.launches[-1].env.get("KEY"), now.get("KEY"))

    def test_what_was_left_running_serves_on_if_nobody_can_tell_what_is_declared(self) -> None:
        self.left_behind({"KEY": "old"})

        def unreadable() -> Mapping[str, str]:
            raise StepFailed("env_file: no such file")

        self.story = replace(self.story, declared=unreadable)
        self.assertTrue(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.server.calls, [])

    def test_an_app_without_a_server_has_nothing_to_start(self) -> None:
        self.deploy()
        self.story = replace(self.story, server=None)
        self.assertTrue(self.result(self.story.resume(DeferredLock())))

    def test_a_journal_that_cannot_be_read_does_not_keep_the_site_down(self) -> None:
        self.deploy()
        self.server = MemoryServer()
        self.story = replace(self.story, server=self.server)

        async def unreadable(app: str) -> Deployment | None:
            raise JournalUnavailable("the disk is broken")

        self.patch(self.journal, "last", unreadable)
        self.assertTrue(self.result(self.story.resume(DeferredLock())))
        self.assertEqual(self.revision(), "a" * 40)


class Migrating(StoryCase):
    """Once per deployment, after the build and before the swap."""

    def setUp(self) -> None:
        super().setUp()
        steps = (StepConfig("first", ("manage", "first")), StepConfig("second", ("manage", "second")))
        self.story = replace(self.story, app=replace(self.story.app, migrate=steps))

    def run_names(self) -> list[str]:
        return [command.name for command in self.runner.commands if command.name in {"first", "second"}]

    def again(self, deployment: Deployment) -> Deployment:
        """What the next start of hookdeploy makes of it."""
        self.runner.waiting.clear()
        del self.logs[deployment.id]
        self.result(self.whole(self.written(deployment)))
        return self.written(deployment)

    def test_it_runs_between_the_build_and_the_swap(self) -> None:
        done = self.deploy()
        phases = [phase for phase, _ in done.phases]
        self.assertEqual(phases[1:4], [Phase.BUILDING, Phase.MIGRATING, Phase.STARTING])
        self.assertEqual([step.name for step in done.steps], ["collect", "migrate", "first", "second"])
        self.assertEqual(done.migrated, "a" * 40)

    def test_it_finds_the_apps_own_python_as_the_server_does(self) -> None:
        """``python manage.py migrate`` needs what ``build = "auto"`` has installed."""
        self.deploy()
        (first,) = (command for command in self.runner.commands if command.name == "first")
        assert self.server.launch is not None
        self.assertEqual(first.env, self.server.launch.env)
        self.assertEqual((first.env["PATH"], first.env["VIRTUAL_ENV"]), ("/venv/bin:/usr/bin", "/venv"))

    def test_one_that_fails_ends_the_deployment_and_nothing_is_swapped(self) -> None:
        self.runner.status["first"] = 1
        done = self.deploy()
        self.assertEqual((done.outcome, done.reason), (Outcome.FAILED, "step 'first' failed: exit 1"))
        self.assertEqual((self.server.calls, self.run_names(), done.migrated), ([], ["first"], None))

    def test_one_that_was_cut_off_is_not_run_again_and_a_person_is_told(self) -> None:
        """T37."""
        self.runner.hold("second")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        done = self.again(deployment)
        self.assertEqual(done.outcome, Outcome.INTERRUPTED)
        self.assertIn("cut off while 'second' migrated (ended: first)", done.reason)
        self.assertIn("hookdeploy deploy blog", done.reason)
        assert done.revision is not None
        self.assertTrue(
            [line for line in self.told() if f"of {done.revision[:7]} {done.subject!r} interrupted" in line]
        )
        self.assertEqual((self.run_names(), self.server.calls), (["first", "second"], []))

    def test_one_that_was_cut_off_is_not_run_again_by_a_push_of_the_same_commit_but_by_a_person(self) -> None:
        """T37: a delivery that led to an interrupted deployment leads to another one when it comes again."""
        self.runner.hold("second")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.again(deployment)
        pushed = self.deploy()
        self.assertEqual((pushed.outcome, self.run_names()), (Outcome.UNCHANGED, ["first", "second"]))
        self.assertIn("aaaaaaa was cut off in its migration", pushed.reason)
        asked = self.result(self.journal.enqueue("blog", Trigger.MANUAL))
        self.result(self.whole(asked))
        self.assertEqual(self.written(asked).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.run_names(), ["first", "second", "first", "second"])

    def test_one_that_had_ended_is_not_run_again_for_the_same_revision(self) -> None:
        """T37: hookdeploy stops while the server starts."""
        held = self.server.hold("swap")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.server.waiting.clear()
        self.assertEqual(self.again(deployment).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.run_names(), ["first", "second"])
        self.assertFalse(held.happened)

    def test_one_that_fails_for_want_of_room_is_not_run_again_by_itself(self) -> None:
        """T37, P84: nobody knows how far it has come, so it is a person's to say."""
        self.story = replace(self.story, try_again_later=self.fail)
        self.runner.status["second"] = 1
        self.runner.prints["second"] = b"OperationalError: [Errno 28] No space left on device"
        done = self.deploy()
        self.assertEqual((done.outcome, done.transient), (Outcome.FAILED, False))

    def test_one_whose_end_cannot_be_written_is_not_run_again_by_itself(self) -> None:
        """T37: the journal is back before the deployment has ended."""
        for call in ("add_step", "migrated"):
            original = getattr(self.journal, call)

            async def fails(*_: Any) -> None:
                raise JournalUnavailable("the disk is full")

            held = self.runner.hold("first")
            deployment, ended = self.begin()
            self.patch(self.journal, call, fails)
            held.happen(None)
            self.successResultOf(ended)
            self.patch(self.journal, call, original)
            done = self.written(deployment)
            self.assertEqual((done.outcome, done.transient), (Outcome.FAILED, False), call)

    def test_a_newer_revision_migrates_although_the_one_before_it_had_ended(self) -> None:
        self.server.hold("swap")
        deployment, ended = self.begin()
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.server.waiting.clear()
        self.checkout.tip = commit("b")
        self.assertEqual(self.again(deployment).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.run_names(), ["first", "second", "first", "second"])

    def test_a_person_who_gives_it_up_waits_until_the_migration_has_ended(self) -> None:
        held = self.runner.hold("first")
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        deploying = Deploying(self.story, deployment)
        tree = self.result(deploying.obtain())
        assert tree is not None
        ended = Deferred.fromCoroutine(deploying.release(tree))
        self.assertTrue(deploying.give_up("no more"))
        self.assertFalse(deploying.may_be_cut_off)
        held.happen(None)
        self.successResultOf(ended)
        done = self.written(deployment)
        self.assertEqual((done.outcome, done.reason), (Outcome.CANCELLED, "no more"))
        self.assertEqual((self.run_names(), done.migrated), (["first", "second"], "a" * 40))
        self.assertEqual((self.server.calls, self.checkout.trees), ([], []))


class GoingBack(StoryCase):
    """A person, or a server that keeps dying, puts a kept release back."""

    def setUp(self) -> None:
        super().setUp()
        self.story = replace(self.story, app=replace(self.story.app, probation=5.0))
        for letter in "abc":
            self.checkout.tip = commit(letter)
            self.deploy()

    def asked(self, trigger: Trigger, wanted: str | None = None) -> Deployment:
        deployment = self.result(self.journal.enqueue("blog", trigger, wanted))
        self.result(self.whole(deployment))
        return self.written(deployment)

    def test_the_good_release_before_the_current_serves_without_network_build_and_probation(self) -> None:
        self.checkout.calls.clear()
        self.runner.commands.clear()
        done = self.asked(Trigger.ROLLBACK)
        self.assertEqual((done.outcome, done.revision, done.previous), (Outcome.DEPLOYED, "b" * 40, "c" * 40))
        self.assertEqual((self.revision(), self.checkout.served), ("b" * 40, self.checkout.trees[1]))
        self.assertEqual(self.checkout.calls, ["current", "put back", "keep", "retire"])
        self.assertEqual(self.runner.commands, [])
        self.assertEqual(self.server.probations[-1], 0.0)

    def test_any_kept_release_can_be_named(self) -> None:
        done = self.asked(Trigger.ROLLBACK, "1-aaaaaaa")
        self.assertEqual((done.outcome, self.revision()), (Outcome.DEPLOYED, "a" * 40))

    def test_one_that_is_not_kept_fails_and_nothing_changes(self) -> None:
        done = self.asked(Trigger.ROLLBACK, "0-fffffff")
        self.assertEqual((done.outcome, done.reason), (Outcome.FAILED, "release 0-fffffff is not kept any more"))
        self.assertEqual(self.revision(), "c" * 40)

    def test_twice_goes_back_twice_and_then_there_is_nothing_left(self) -> None:
        self.asked(Trigger.ROLLBACK)
        self.asked(Trigger.ROLLBACK)
        self.assertEqual(self.revision(), "a" * 40)
        self.assertEqual(self.asked(Trigger.ROLLBACK).reason, "no earlier good release is kept")

    def test_one_that_was_put_back_is_passed_over(self) -> None:
        self.asked(Trigger.ROLLBACK, "1-aaaaaaa")  # from c
        self.checkout.tip = commit("d")
        self.deploy()
        self.asked(Trigger.ROLLBACK)
        self.assertEqual(self.revision(), "b" * 40)

    def test_where_a_rollback_would_lead_is_never_retired(self) -> None:
        """It need not be the newest but one: what came in between was put back."""
        self.assertEqual(self.checkout.wanted, {"2-bbbbbbb", "3-ccccccc"})
        self.asked(Trigger.ROLLBACK)
        self.checkout.tip = commit("d")
        self.deploy()
        self.assertEqual(self.checkout.wanted, {"2-bbbbbbb", "4-ddddddd"})

    def test_what_was_put_back_is_not_deployed_by_a_push_but_by_a_person_or_a_newer_commit(self) -> None:
        self.asked(Trigger.ROLLBACK)
        again = self.deploy()
        self.assertEqual((again.outcome, self.revision()), (Outcome.UNCHANGED, "b" * 40))
        self.assertIn("ccccccc was put back", again.reason)
        self.assertEqual(self.asked(Trigger.MANUAL).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.revision(), "c" * 40)
        self.assertEqual(self.deploy().reason, "ccccccc runs already")

    def test_what_a_person_tries_again_in_vain_stays_put_back(self) -> None:
        self.asked(Trigger.ROLLBACK)
        self.runner.status["collect"] = 1
        self.assertEqual(self.asked(Trigger.MANUAL).outcome, Outcome.FAILED)
        self.runner.status.clear()
        self.assertEqual((self.deploy().outcome, self.revision()), (Outcome.UNCHANGED, "b" * 40))

    def test_a_rollback_that_was_cut_off_is_finished_and_still_takes_back_what_it_was_asked_to(self) -> None:
        """P83: hookdeploy is killed when the older release is the current one already."""
        held = self.checkout.hold("keep")
        back = self.result(self.journal.enqueue("blog", Trigger.ROLLBACK, "2-bbbbbbb"))
        ended = Deferred.fromCoroutine(self.whole(back))
        ended.cancel()
        self.failureResultOf(ended, CancelledError)
        self.assertFalse(held.happened)
        self.checkout.waiting.clear()
        self.checkout.served = self.checkout.trees[1]
        del self.logs[back.id]
        self.result(self.whole(self.written(back)))
        done = self.written(back)
        self.assertEqual((done.outcome, done.revision, done.previous), (Outcome.DEPLOYED, "b" * 40, "c" * 40))
        self.assertEqual((self.deploy().outcome, self.revision()), (Outcome.UNCHANGED, "b" * 40))

    def test_a_newer_commit_ends_it(self) -> None:
        self.asked(Trigger.ROLLBACK)
        self.checkout.tip = commit("d")
        self.assertEqual((self.deploy().outcome, self.revision()), (Outcome.DEPLOYED, "d" * 40))

    def test_one_that_cannot_be_put_back_is_not_let_go_of(self) -> None:
        self.server.failing["swap"] = StepFailed("the new server did not start")
        self.assertEqual(self.asked(Trigger.ROLLBACK).outcome, Outcome.FAILED)
        self.assertEqual(len(self.checkout.trees), 3)

    def test_what_fails_on_probation_is_rolled_back_and_not_tried_again_by_a_push(self) -> None:
        self.checkout.tip = commit("d")
        self.server.failing["probation"] = ProbationFailed("3 answers of 500 and above", tail="ZeroDivisionError")
        done = self.deploy()
        self.assertEqual(done.outcome, Outcome.ROLLED_BACK)
        self.assertEqual(done.reason, "3 answers of 500 and above\nZeroDivisionError")
        self.assertEqual((self.revision(), len(self.checkout.trees)), ("c" * 40, 3))
        self.server.failing.clear()
        self.assertEqual(self.deploy().outcome, Outcome.UNCHANGED)
        self.assertEqual(self.asked(Trigger.MANUAL).outcome, Outcome.DEPLOYED)

    def test_a_person_can_deploy_a_certain_revision(self) -> None:
        done = self.asked(Trigger.MANUAL, "eeee")
        self.assertEqual((done.outcome, self.revision()), (Outcome.DEPLOYED, "e" * 40))

    def test_a_person_can_deploy_what_runs_already(self) -> None:
        self.assertEqual(self.asked(Trigger.MANUAL).outcome, Outcome.DEPLOYED)

    def test_a_pinned_app_deploys_for_persons_only(self) -> None:
        self.result(self.journal.steer("blog", Steering(pinned=True)))
        self.checkout.tip = commit("d")
        self.checkout.calls.clear()
        pushed = self.deploy()
        self.assertEqual((pushed.outcome, pushed.reason), (Outcome.UNCHANGED, "the app is pinned to what it serves"))
        self.assertEqual(self.checkout.calls, [])
        self.assertEqual(self.asked(Trigger.MANUAL).outcome, Outcome.DEPLOYED)


class GivingUp(StoryCase):
    """A person does not want a deployment any more."""

    def given_up(self, held: str, where: MemoryCheckout | MemoryServer | MemoryRunner) -> Deployment:
        """Given up while this is under way."""
        where.hold(held)
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        deploying = Deploying(self.story, deployment)

        async def whole() -> None:
            tree = await deploying.obtain()
            if tree is not None:
                await deploying.release(tree)

        ended = Deferred.fromCoroutine(whole())
        self.assertTrue(deploying.give_up("somebody cancelled it"))
        self.assertTrue(deploying.may_be_cut_off)
        ended.cancel()
        self.successResultOf(ended)
        self.assertTrue(self.logs[deployment.id].closed)
        return self.written(deployment)

    def test_while_it_fetches(self) -> None:
        done = self.given_up("fetch", self.checkout)
        self.assertEqual((done.outcome, done.reason), (Outcome.CANCELLED, "somebody cancelled it"))

    def test_while_it_builds_and_its_tree_is_let_go_of(self) -> None:
        done = self.given_up("collect", self.runner)
        self.assertEqual((done.outcome, self.checkout.trees, self.server.calls), (Outcome.CANCELLED, [], []))

    def test_while_the_server_is_swapped(self) -> None:
        done = self.given_up("swap", self.server)
        self.assertEqual((done.outcome, self.checkout.trees), (Outcome.CANCELLED, []))

    def test_once_it_serves_it_is_too_late(self) -> None:
        self.checkout.hold("keep")
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        deploying = Deploying(self.story, deployment)
        tree = self.result(deploying.obtain())
        assert tree is not None
        ended = Deferred.fromCoroutine(deploying.release(tree))
        self.assertFalse(deploying.give_up("somebody cancelled it"))
        self.checkout.waiting["keep"].happen(None)
        self.successResultOf(ended)
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)


def no_room() -> None:
    raise NoRoom("the disk of /state is nearly full: 12 MiB are free")


class Room(StoryCase):
    """A disk that is nearly full."""

    def test_a_deployment_does_not_begin_without_it(self) -> None:
        self.story = replace(self.story, ask_for_room=no_room)
        done = self.deploy()
        self.assertEqual(done.reason, "the disk of /state is nearly full: 12 MiB are free")
        self.assertEqual((done.outcome, done.transient), (Outcome.FAILED, True))
        self.assertEqual(self.checkout.calls, [])

    def test_what_fails_because_the_disk_fills_up_may_be_tried_again(self) -> None:
        """P84."""
        for failure in (
            NoRoom("aaaaaaa could not be checked out: the disk is full"),
            StepFailed("the environment could not be made: exit 1", tail="OSError: [Errno 28] No space left on device"),
            OSError(ENOSPC, "No space left on device", "/state/apps/blog/preparing"),
        ):
            self.checkout.failing["take"] = failure
            done = self.deploy()
            self.assertEqual((done.outcome, done.transient), (Outcome.FAILED, True), failure)

    def test_what_fails_on_a_disk_that_is_full_by_then_may_be_tried_again(self) -> None:
        """P84: a program may say it in words of its own, or in none."""
        self.runner.status["collect"] = 1
        asked = iter([None])

        def full_by_then() -> None:
            if next(asked, self) is self:
                no_room()

        self.story = replace(self.story, ask_for_room=full_by_then)
        self.assertTrue(self.deploy().transient)

    def test_who_looks_after_the_remotes_is_told(self) -> None:
        """P84: it heals when there is room again, without a person and without a poll."""
        told: list[str] = []
        self.story = replace(self.story, try_again_later=lambda: told.append("later"))
        self.checkout.failing["take"] = NoRoom("the disk is full")
        self.deploy()
        self.assertEqual(told, ["later"])
        self.checkout.failing["take"] = StepFailed("it is not there")
        self.deploy()
        self.assertEqual(told, ["later"])

    def test_what_fails_for_itself_is_not_tried_again(self) -> None:
        self.runner.status["collect"] = 1
        self.assertFalse(self.deploy().transient)

    def test_what_was_left_half_done_goes_before_it_is_asked_for(self) -> None:
        """P84: it may be what fills the disk, and would be in the way of every deployment."""

        def full_of_leftovers() -> None:
            if not self.checkout.rooms:
                no_room()

        self.story = replace(self.story, ask_for_room=full_of_leftovers)
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)

    def test_what_cannot_be_tidied_up_is_no_failure(self) -> None:
        self.checkout.failing["retire"] = StepFailed("/releases/0 could not be removed")
        self.assertEqual(self.deploy().outcome, Outcome.DEPLOYED)
        self.assertIn("blog: /releases/0 could not be removed", self.told())


class Turns(StoryCase):
    """A release is built when it is its repository's turn."""

    def setUp(self) -> None:
        super().setUp()
        self.builders = Builders(1)
        self.story = replace(self.story, turn_to_build=self.builders.turn)

    def test_it_waits_for_the_builder_and_then_goes_on(self) -> None:
        other = self.builders.turn("another mirror")
        self.result(other.__aenter__())
        deployment, ended = self.begin()
        self.assertNoResult(ended)
        self.assertNotIn(Phase.BUILDING, dict(self.written(deployment).phases))
        self.result(other.__aexit__(None, None, None))
        self.successResultOf(ended)
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)

    def test_the_builder_is_free_again_before_the_swap_and_after_a_failure(self) -> None:
        self.runner.status["collect"] = 1
        self.assertEqual(self.deploy().outcome, Outcome.FAILED)
        self.runner.status.clear()
        swapping = self.server.hold("swap")
        _, ended = self.begin()
        self.assertNoResult(ended)
        self.result(self.builders.turn("another mirror").__aenter__())
        swapping.happen(None)
        self.successResultOf(ended)

    def test_a_rollback_waits_for_nobody(self) -> None:
        self.deploy()
        self.checkout.tip = commit("b")
        self.deploy()
        self.result(self.builders.turn("mirror").__aenter__())
        deployment = self.result(self.journal.enqueue("blog", Trigger.ROLLBACK, self.checkout.trees[0].release))
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).outcome, Outcome.DEPLOYED)


class Reasons(StoryCase):
    """Why it was made."""

    def test_it_is_in_the_log_and_stays_when_all_went_well(self) -> None:
        deployment = self.result(self.journal.enqueue("blog", Trigger.POLL, reason="branch moved, no hook came"))
        self.result(self.whole(deployment))
        self.assertEqual(self.written(deployment).reason, "branch moved, no hook came")
        self.assertIn("branch moved, no hook came", self.logs[deployment.id].headings)

    def test_a_failure_says_why_it_failed_instead(self) -> None:
        self.runner.status["collect"] = 1
        deployment = self.result(self.journal.enqueue("blog", Trigger.POLL, reason="branch moved, no hook came"))
        self.result(self.whole(deployment))
        self.assertIn("step 'collect' failed", self.written(deployment).reason)
