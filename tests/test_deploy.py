"""The story of a deployment: what it does in which order, and what every kind of failure leaves behind."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import HeardEvents, MemoryCheckout, MemoryEnvironments, MemoryLog, MemoryRunner, MemoryServer, commit
from tests.fakes import MemoryJournal
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.deploy import Deploying, Story
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, Phase, StepFailed, Trigger

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
            app=AppConfig(name="blog", hook="blog", branch="main", build=STEPS, wsgi="wsgi:application"),
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
        deploying = self.story.deploying(deployment)
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
        self.assertEqual(self.checkout.calls, ["fetch", "current", "take", "keep"])

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

    def test_the_tree_cannot_be_kept_and_what_served_serves_again(self) -> None:
        """P86."""
        self.checkout.failing["keep"] = StepFailed("current is a real directory")
        self.failed("current is a real directory")
        self.assertEqual(self.server.calls, ["swap", "swap"])

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
        deploying = self.story.deploying(deployment)
        tree = self.result(deploying.obtain())
        assert tree is not None
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.result(deploying.release(tree))
        self.assertFalse(deploying.ended)
        self.assertTrue(self.logs[deployment.id].closed)
        self.assertIn("the disk is full", self.told()[-1])
        self.journal.fail_with = None
        del self.logs[deployment.id]
        again = self.story.deploying(deployment)
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

    def test_a_first_tree_that_cannot_be_kept_is_not_discarded_while_it_serves(self) -> None:
        self.checkout.failing["keep"] = StepFailed("current is a real directory")
        self.assertEqual(self.deploy().outcome, Outcome.FAILED)
        self.assertEqual(self.revision(), "a" * 40)
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


class AJournalThatFails(StoryCase):
    """A deployment whose words cannot be written."""

    def test_one_that_cannot_begin_touches_nothing(self) -> None:
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.successResultOf(Deferred.fromCoroutine(self.whole(deployment)))
        self.assertEqual(self.checkout.calls, [])
        self.assertIn("blog: the journal: the disk is full", self.told())
        self.assertIsNone(self.written(deployment).outcome, "the next start takes it up")

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
        self.assertEqual(self.revision(), "a" * 40)


class Resuming(StoryCase):
    """After a start of hookdeploy, and after a change of its configuration."""

    def test_there_is_nothing_to_resume_before_the_first_deployment(self) -> None:
        self.assertFalse(self.result(self.story.resume()))
        self.assertEqual(self.server.launches, [])

    def test_the_current_tree_is_served_with_its_environment(self) -> None:
        done = self.deploy()
        self.server = MemoryServer()
        self.story = replace(self.story, server=self.server)
        self.assertTrue(self.result(self.story.resume()))
        self.assertEqual(self.server.calls, ["start"])
        assert self.server.launch is not None
        self.assertEqual(self.server.launch.tree, self.checkout.served)
        self.assertEqual(self.server.launch.env["HOOKDEPLOY_DEPLOYMENT"], done.id)
        self.assertEqual(self.server.launch.env["PATH"], "/venv/bin:/usr/bin")

    def test_a_server_that_runs_is_swapped(self) -> None:
        self.deploy()
        self.assertTrue(self.result(self.story.resume()))
        self.assertEqual(self.server.calls, ["swap", "swap"])

    def test_an_app_without_a_server_has_nothing_to_start(self) -> None:
        self.deploy()
        self.story = replace(self.story, server=None)
        self.assertTrue(self.result(self.story.resume()))

    def test_a_journal_that_cannot_be_read_does_not_keep_the_site_down(self) -> None:
        self.deploy()
        self.server = MemoryServer()
        self.story = replace(self.story, server=self.server)

        async def unreadable(app: str) -> Deployment | None:
            raise JournalUnavailable("the disk is broken")

        self.patch(self.journal, "last", unreadable)
        self.assertTrue(self.result(self.story.resume()))
        self.assertEqual(self.revision(), "a" * 40)
