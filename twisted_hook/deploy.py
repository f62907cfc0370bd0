"""One deployment, in order: fetch, build, migrate, start, check, swap, watch, tell.

Works over boundaries only and knows no tool by name. It decides what a failure means: what was running keeps
running, and the reason is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from errno import EDQUOT, ENOSPC
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from twisted_hook.boundaries import AppServer
from twisted_hook.commands import says_disk_is_full
from twisted_hook.config import StepConfig
from twisted_hook.model import (
    Command,
    CommandResult,
    Commit,
    Deployment,
    Environment,
    JournalUnavailable,
    Launch,
    NoRoom,
    NoSuchRow,
    Outcome,
    Phase,
    ProbationFailed,
    Step,
    StepFailed,
    Tree,
    Trigger,
)
from twisted_hook.story import SKIPS, Story

T = TypeVar("T")

BAD = frozenset({Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.INTERRUPTED})
BY_A_PERSON = frozenset({Trigger.MANUAL, Trigger.ROLLBACK})
"""Triggers that neither a pin nor a pause holds back."""
LOOK_BACK = 200
"""Deployments among which those are looked for whose place one has taken."""
UNASKED = frozenset({Trigger.PUSH, Trigger.POLL, Trigger.REPLAY})
"""Triggers behind which nobody stands who has asked for this very app to be deployed."""


class Deploying:
    """One deployment on its way. It records its own end: neither method raises anything but ``CancelledError``.

    One that is cancelled because hookdeploy stops stays without an outcome, so that the next start takes it up.
    """

    _logger = Logger()

    def __init__(self, story: Story, deployment: Deployment) -> None:
        self._story = story
        self._deployment = deployment
        self._app = story.app
        self._log = story.open_log(deployment.id)
        self._goes_back = deployment.trigger is Trigger.ROLLBACK
        self._previous: str | None = None
        self._commit = deployment.wanted or "the tip"
        """What is deployed, in words."""
        self._delivery = deployment.delivery
        self._cut_off = False
        """It was begun before: its tree may be there, and half built."""
        self._half_done: str | None = None
        """The commit of that tree."""
        self._migrated: str | None = None
        self._migrating = False
        self._half_migrated = False
        """As far as anybody knows, so that it is not run again by itself."""
        self._tree: Tree | None = None
        self._unwanted = ""
        """Why a person does not want it any more."""
        self._leaves_off = False
        self._decided = False
        """It serves, or has failed: too late to give it up."""
        self.ended = False
        """Its outcome is in the journal."""
        self.unwritten: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Writes the outcome that the journal did not take, unless it failed for want of the journal alone."""

    async def obtain(self) -> Tree | None:
        """Fetch and check out what is to be deployed; None if it has ended here. Wants the repository's lock."""
        tree = await self._recording(self._obtain())
        if tree is None:
            await self._let_go()
            self._log.close()
        return tree

    async def release(self, tree: Tree) -> None:
        """Build the tree, start it, and put it in the place of what serves."""
        try:
            environment = await self._recording(self._release(tree))
            if environment is None:
                await self._let_go()
            else:
                await self._tidy_up(environment)
        finally:
            self._log.close()

    def give_up(self, reason: str) -> bool:
        """A person does not want it any more: what it waits for will be cancelled. False if it is too late for that."""
        if self._decided:
            return False
        self._unwanted = reason
        return True

    def leave_off(self) -> None:
        """hookdeploy stops: go no further than to the end of the migration."""
        self._leaves_off = True

    @property
    def may_be_cut_off(self) -> bool:
        """Whether what it waits for may be cancelled now; a migration is not to be left half done."""
        return not self._migrating

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        """Run a command with its output in the deployment's log; what the checkout and the environments run with."""
        self._log.heading(f"$ {command.name}")
        result = await self._story.runner.run(command, output=output or self._log.write)
        if not result.ok:
            self._log.heading(f"{command.name}: {result.verdict}")
        return result

    async def _obtain(self) -> Tree | None:
        story = self._story
        begun = await story.journal.begin(self._deployment.id, story.now())
        if begun.outcome is not None:  # written, though whoever wrote it had to believe that it was not
            self.ended = True
            return None
        self._say_begun(begun)
        if begun.reason:
            self._log.heading(begun.reason)
        self._cut_off, self._migrated, self._previous = begun.attempts > 1, begun.migrated, begun.previous
        self._half_done = begun.revision if self._cut_off and begun.release else None
        if begun.phase is Phase.MIGRATING:
            if begun.revision is not None:
                self._commit = story.shown(f"{begun.revision[:7]} {begun.subject!r}")
            await self._finish(Outcome.INTERRUPTED, story.cut_off_in_migration(begun))
            return None
        if not self._by_a_person and (await story.steering()).pinned:
            await self._nothing_to_do("the app is pinned to what it serves")
            return None
        self._tree = await (self._find_way_back() if self._goes_back else self._follow())
        return self._tree

    async def _follow(self) -> Tree | None:
        """What the remote has, or what a person has named of it."""
        checkout = self._story.checkout
        await checkout.make_room(self)
        self._story.ask_for_room()
        await self._enter(Phase.FETCHING)
        commit = await checkout.fetch(self, self._deployment.wanted)
        current = await checkout.current(self)
        self._previous = current.commit.revision if current else None
        await self._describe(commit, None)
        if self._previous == commit.revision and await self._runs(commit):
            await self._nothing_to_do(f"{commit.revision[:7]} runs already")
            return None
        objection = "" if self._by_a_person else await self._story.objection(commit.revision)
        if objection:
            again = f"hookdeploy deploy {self._app.name} deploys it all the same"
            await self._nothing_to_do(f"{commit.revision[:7]} {objection}, so it waits for a newer commit; {again}")
            return None
        spared = await self._spared(commit, current)
        if spared:
            await self._nothing_to_do(spared)
            return None
        self._tree = tree = await checkout.take(self, commit)
        self._logger.info("Repository updated with commit {short}", short=tree.commit.revision[:6], app=self._app.name)
        if self._previous == tree.commit.revision and await self._runs(tree.commit):
            await checkout.discard(self, tree, self._in_use)
            await self._nothing_to_do(f"{tree.commit.revision[:7]} runs already")
            return None
        await self._describe(tree.commit, tree.release)
        return tree

    async def _spared(self, commit: Commit, current: Tree | None) -> str:
        """Why this commit need not take the place of what runs; empty if it is to, or a person wants it to."""
        may_be = self._deployment.trigger in UNASKED and (commit.skips or self._app.paths)
        if not may_be or current is None or await self._is_due(commit, current) or await self._stands_for_a_wish():
            return ""
        short, again = commit.revision[:7], f"hookdeploy deploy {self._app.name} deploys it all the same"
        if commit.skips:
            return f"{short} {SKIPS}{commit.skips}; {again}"
        serves = self._serves_commit(current.commit)
        if not serves or await self._story.checkout.touches(self, commit, self._app.paths):
            return ""
        return f"{short} {self._story.unaffected}{current.commit.revision[:7]}; {again}"

    async def _stands_for_a_wish(self) -> bool:
        """Whether it has taken the place of a deployment that was wanted whatever it changes."""
        newest = await self._story.journal.deployments(app=self._app.name, limit=LOOK_BACK)
        covered = (each for each in newest if each.superseded_by == self._deployment.id)
        return any(each.trigger not in UNASKED for each in covered)

    async def _is_due(self, commit: Commit, current: Tree) -> bool:
        """Whether nobody has to ask what it changes: it was being deployed already, or is there and does not run."""
        if current.commit.revision == commit.revision or await self._story.was_never_built():
            return True
        return self._half_done is not None and await self._story.checkout.has(self, commit.revision, self._half_done)

    async def _find_way_back(self) -> Tree:
        checkout, wanted = self._story.checkout, self._deployment.wanted
        current = await checkout.current(self)
        if self._previous is None:  # else it was cut off, and may have become the current one itself
            self._previous = current.commit.revision if current else None
        tree = await self._story.way_back(wanted)
        if tree is None:
            raise StepFailed(f"release {wanted} is not kept any more" if wanted else "no earlier good release is kept")
        await self._describe(tree.commit, tree.release)
        self._tree = tree
        await checkout.put_back(self, tree)
        return tree

    async def _release(self, tree: Tree) -> Environment:
        story = self._story
        env = story.env(tree, previous=self._previous, deployment=self._deployment.id)
        environment = await self._build(tree, env)
        if self._app.migrate and not self._goes_back:
            await self._migrate(tree, story.serving(env, environment))
        if story.server is None:
            await story.checkout.keep(self, tree)
        else:
            await self._swap(story.server, Launch(tree, environment, story.serving(env, environment)))
        await self._finish(Outcome.DEPLOYED)
        return environment

    async def _build(self, tree: Tree, env: Mapping[str, str]) -> Environment:
        story = self._story
        if self._goes_back:
            return await story.environments.prepare(self, tree, env)
        async with story.turn_to_build(story.checkout.repository):
            await self._enter(Phase.BUILDING)
            for step in () if self._app.build == "auto" else self._app.build:
                await self._step(step, tree, env, nice=self._app.nice)
            return await story.environments.prepare(self, tree, env)

    async def _migrate(self, tree: Tree, env: Mapping[str, str]) -> None:
        """Its beginning and its end are in the journal: after a crash in between it is not run again unasked."""
        if self._migrated == tree.commit.revision:
            self._log.heading("it has migrated already")
            return
        self._migrating = True
        try:
            await self._enter(Phase.MIGRATING)
            self._half_migrated = True
            for step in self._app.migrate:
                await self._step(step, tree, env)
            await self._story.journal.migrated(self._deployment.id, tree.commit.revision)
            self._half_migrated = False
        finally:
            self._migrating = False
        if self._unwanted or self._leaves_off:
            raise CancelledError

    async def _swap(self, server: AppServer, launch: Launch) -> None:
        """Serve the tree and keep it; if it cannot be kept, what served before serves on."""

        async def keep() -> None:
            self._decided = True
            await self._story.checkout.keep(self, launch.tree)

        probation = 0.0 if self._goes_back else self._app.probation  # what is to go must not answer any longer
        await server.swap(launch, self._entered, probation=probation, keep=keep)

    async def _step(self, step: StepConfig, tree: Tree, env: Mapping[str, str], *, nice: int = 0) -> None:
        command = Command(
            step.name,
            step.argv,
            {**env, **step.env},
            cwd=tree.path,
            timeout=self._app.step_timeout if step.timeout is None else step.timeout,
            user=self._app.user,
            nice=nice,
        )
        started = self._story.now()
        result = await self.run(command)
        name, words = self._story.shown(step.name), self._story.shown(" ".join(step.argv))
        done = Step(name, words, started, result.seconds, result.verdict)
        await self._story.journal.add_step(self._deployment.id, done)
        if not result.ok:
            raise StepFailed(f"step {step.name!r} failed: {result.verdict}", tail=result.tail)

    async def _tidy_up(self, environment: Environment) -> None:
        """Let go of what nobody needs any more. The deployment has ended well, whatever comes of this."""
        story = self._story
        try:
            back = await story.way_back()
            await story.checkout.retire(self, self._in_use | ({back.release} if back else set()))
            await story.environments.keep(self, environment)
        except (StepFailed, OSError, JournalUnavailable) as problem:
            shown = story.shown(str(problem))
            self._logger.emit(LogLevel.warn, "{app}: {problem}", app=self._app.name, problem=shown)

    async def _let_go(self) -> None:
        """What was taken does not serve, or did so already: in place it is the very same tree then."""
        tree = self._tree
        if tree is not None and (not self._serves(tree) or tree.commit.revision == self._previous):
            await self._recording(self._story.checkout.discard(self, tree, self._in_use))

    @property
    def _in_use(self) -> frozenset[str]:
        return self._story.server.in_use if self._story.server is not None else frozenset()

    @property
    def _by_a_person(self) -> bool:
        return self._deployment.trigger in BY_A_PERSON

    async def _runs(self, commit: Commit) -> bool:
        """Whether this very commit is what runs, and its deployment did not fail half-way."""
        asked_for = self._deployment.trigger in (Trigger.MANUAL, Trigger.START)
        if asked_for or self._cut_off or await self._story.was_never_built():
            return False
        last = await self._story.journal.last(self._app.name)
        server = self._story.server
        known = last is not None and last.revision == commit.revision
        if last is not None and known and last.outcome is not Outcome.DEPLOYED:
            return False
        return known if server is None else self._serves_commit(commit)

    def _serves_commit(self, commit: Commit) -> bool:
        """Whether the server is well and has this very commit; True where there is no server."""
        server = self._story.server
        launch = server.launch if server is not None and server.status.state == "serving" else None
        return server is None or (launch is not None and launch.tree.commit.revision == commit.revision)

    def _serves(self, tree: Tree) -> bool:
        server = self._story.server
        return server is not None and server.launch is not None and server.launch.tree == tree

    async def _nothing_to_do(self, reason: str) -> None:
        await self._finish(Outcome.UNCHANGED, reason)
        self._tree = None

    async def _recording(self, work: Coroutine[Any, Any, T]) -> T | None:
        try:
            return await work
        except CancelledError:
            if not self._unwanted:
                self._log.heading("hookdeploy stops; the next start takes this up again")
                self._log.close()
                raise
            await self._finish(Outcome.CANCELLED, self._unwanted)
        except ProbationFailed as failed:
            await self._finish(Outcome.ROLLED_BACK, failed.reason)
        except StepFailed as failed:
            await self._finish(Outcome.FAILED, failed.reason, transient=self._is_for_want_of_room(failed))
        except OSError as error:
            transient = error.errno in (ENOSPC, EDQUOT)
            await self._finish(Outcome.FAILED, f"{error.strerror}: {error.filename}", transient=transient)
        except JournalUnavailable as problem:
            await self._finish(Outcome.FAILED, f"the journal: {problem}", transient=True)
            self.unwritten = None
        except Exception as fault:  # noqa: BLE001 - a bug ends its deployment, and the lane lives on
            self._logger.failure("{app}: a fault in hookdeploy", app=self._app.name)
            await self._finish(Outcome.FAILED, f"{fault!r}; hookdeploy's own log has the traceback")
        return None

    def _is_for_want_of_room(self, failed: StepFailed) -> bool:
        return isinstance(failed, NoRoom) or says_disk_is_full(failed.reason) or self._story.lacks_room

    async def _finish(self, outcome: Outcome, reason: str = "", *, transient: bool = False) -> None:
        self._decided = True
        transient = transient and not self._half_migrated
        reason = self._story.shown(reason)
        self._log.heading(f"{outcome}{': ' if reason else ''}{reason}")
        self._logger.emit(
            LogLevel.error if outcome in BAD else LogLevel.info,
            "{app}: deployment {deployment} of {commit} {outcome}{reason}",
            app=self._app.name,
            deployment=self._deployment.id,
            delivery=self._delivery,
            commit=self._commit,
            outcome=str(outcome),
            reason=f": {reason}" if reason else "",
        )
        write = partial(self._write_end, outcome, reason, self._story.now(), transient=transient)
        try:
            await write()
        except JournalUnavailable as problem:
            self._logger.error("{app}: the journal: {problem}", app=self._app.name, problem=str(problem))
            if isinstance(problem, NoSuchRow):  # it began anew, and has forgotten what this was for
                self.ended = True
                self._story.try_again_later()
            else:
                self.unwritten = write

    async def _write_end(self, outcome: Outcome, reason: str, at: float, *, transient: bool) -> None:
        journal, deployment = self._story.journal, self._deployment.id
        if outcome is Outcome.DEPLOYED:
            await journal.advance(deployment, Phase.DONE, at)
        await journal.finish(deployment, outcome, at, reason=reason, transient=transient)
        self.ended = True
        if transient:
            self._story.try_again_later()

    def _say_begun(self, begun: Deployment) -> None:
        """Here and not when it was queued: a line for each of a flood of deliveries would hold the door up."""
        self._delivery = begun.delivery
        self._logger.info(
            "{app}: deployment {deployment} ({trigger}) begins{queued}",
            app=self._app.name,
            deployment=begun.id,
            delivery=begun.delivery,
            trigger=begun.trigger.value,
            queued="" if begun.delivery is None else f", queued for delivery {begun.delivery}",
        )

    async def _enter(self, phase: Phase) -> None:
        self._log.heading(f"-- {phase}")
        self._logger.info(
            "{app}: deployment {deployment} {phase}",
            app=self._app.name,
            deployment=self._deployment.id,
            delivery=self._delivery,
            phase=phase.value,
        )
        await self._story.journal.advance(self._deployment.id, phase, self._story.now())

    def _entered(self, phase: Phase) -> None:
        """As ``_enter``, for callers that do not wait; the journal keeps the order."""
        Deferred.fromCoroutine(self._enter(phase)).addErrback(self._not_written)

    def _not_written(self, failure: Failure) -> None:
        if failure.check(JournalUnavailable) is None:
            self._logger.failure("{app}: writing a phase", failure, app=self._app.name)
        else:
            self._logger.error("{app}: the journal: {problem}", app=self._app.name, problem=str(failure.value))

    async def _describe(self, commit: Commit, release: str | None) -> None:
        self._commit = self._story.shown(f"{commit.revision[:7]} {commit.subject!r}")
        await self._story.journal.describe(self._deployment.id, commit=commit, previous=self._previous, release=release)
