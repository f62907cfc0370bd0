"""Every arrow of a generation's life, and what holds whatever happens to it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook import supervision
from twisted_hook.supervision import Terms

BOOT_LIMIT, DRAIN_LIMIT = 30.0, 35.0


class RecordingHands:
    """Writes down what it is told, and when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.done: list[str] = []
        self.at: dict[str, float] = {}
        self.reason = ""

    def _note(self, what: str) -> None:
        self.done.append(what)
        self.at[what] = self._clock.seconds()

    def checking(self) -> None:
        self._note("checking")

    def open_gate(self) -> None:
        self._note("open_gate")

    def terminate(self) -> None:
        self._note("terminate")

    def kill(self) -> None:
        self._note("kill")

    def serving(self) -> None:
        self._note("serving")

    def failed(self, reason: str) -> None:
        self._note("failed")
        self.reason = reason

    def proven(self) -> None:
        self._note("proven")

    def wanting(self, reason: str) -> None:
        self._note("wanting")
        self.reason = reason

    def gone(self, how: str) -> None:
        self._note("gone")


class GenerationCase(SynchronousTestCase):
    """A generation of two workers, 11 and 12."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.hands = RecordingHands(self.clock)
        self.life = supervision.live(supervision.Generation(self.hands, self.clock, BOOT_LIMIT, DRAIN_LIMIT))

    def tearDown(self) -> None:
        if "gone" not in self.hands.done:
            self.life.exited("exit 0")
        self.assertEqual(self.clock.getDelayedCalls(), [], "an ended generation has left a timer")

    def boot(self) -> None:
        self.life.spawned()
        self.life.starting(2)

    def open_the_gate(self) -> None:
        self.boot()
        self.life.worker_checked(11, None)
        self.life.worker_checked(12, None)

    def serve(self) -> None:
        self.open_the_gate()
        self.life.worker_booted(11)
        self.life.worker_booted(12)
        self.hands.done.clear()

    def did(self, *expected: str) -> None:
        self.assertEqual(self.hands.done, list(expected))


class TheGoodLife(GenerationCase):
    """booting → healthy → serving → draining → gone."""

    def test_nothing_is_done_until_the_server_has_read_its_configuration(self) -> None:
        self.life.spawned()
        self.did()

    def test_checking_begins_when_the_configuration_is_read(self) -> None:
        self.boot()
        self.did("checking")

    def test_one_of_two_good_workers_does_not_open_the_gate(self) -> None:
        self.boot()
        self.life.worker_checked(11, None)
        self.did("checking")

    def test_the_same_worker_twice_does_not_open_the_gate(self) -> None:
        self.boot()
        self.life.worker_checked(11, None)
        self.life.worker_checked(11, None)
        self.did("checking")

    def test_the_last_good_worker_opens_the_gate(self) -> None:
        self.open_the_gate()
        self.did("checking", "open_gate")

    def test_a_configuration_that_is_reported_again_behind_the_gate_changes_nothing(self) -> None:
        """gunicorn reads it again on a SIGHUP of somebody's."""
        self.open_the_gate()
        self.life.starting(3)
        self.did("checking", "open_gate")
        self.life.worker_booted(11)
        self.life.worker_booted(12)
        self.did("checking", "open_gate", "serving")

    def test_one_of_two_accepting_workers_is_not_service(self) -> None:
        self.open_the_gate()
        self.life.worker_booted(11)
        self.life.worker_booted(11)
        self.did("checking", "open_gate")

    def test_the_last_accepting_worker_makes_it_serve(self) -> None:
        self.open_the_gate()
        self.life.worker_booted(11)
        self.life.worker_booted(12)
        self.did("checking", "open_gate", "serving")

    def test_what_serves_has_no_time_limit(self) -> None:
        self.serve()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_draining_asks_the_server_to_end(self) -> None:
        self.serve()
        self.life.drain()
        self.did("terminate")

    def test_a_drained_server_that_exits_is_gone_and_was_never_killed(self) -> None:
        self.serve()
        self.life.drain()
        self.life.exited("exit 0")
        self.did("terminate", "gone")

    def test_a_server_that_does_not_finish_is_killed_at_the_drain_limit(self) -> None:
        self.serve()
        self.life.drain()
        self.clock.advance(DRAIN_LIMIT - 1)
        self.did("terminate")
        self.clock.advance(1)
        self.did("terminate", "kill")
        self.life.exited("signal 9")
        self.did("terminate", "kill", "gone")

    def test_a_server_that_ends_by_itself_is_gone(self) -> None:
        self.serve()
        self.life.exited("signal 11")
        self.did("gone")


class WithoutGate(GenerationCase):
    """A program that is not gunicorn: from its start on it may hold somebody's request."""

    def setUp(self) -> None:
        super().setUp()
        self.life.spawned_without_gate()

    def test_it_serves_when_it_accepts(self) -> None:
        self.life.worker_booted(11)
        self.did("serving")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_does_not_accept_in_time_drains(self) -> None:
        self.clock.advance(BOOT_LIMIT)
        self.did("terminate", "failed")
        self.assertIn("30 s (health_timeout)", self.hands.reason)

    def test_one_that_is_not_wanted_any_more_drains(self) -> None:
        self.life.drain()
        self.did("terminate", "failed")

    def test_one_that_exits_has_failed(self) -> None:
        self.life.exited("exit 1")
        self.did("failed", "gone")

    def test_one_that_its_owner_finds_unfit_is_killed(self) -> None:
        self.life.unfit("no room for its record")
        self.did("kill", "failed")


class FailuresBeforeTheGate(GenerationCase):
    """Nobody's request can be inside: what fails is killed at once."""

    def failed(self, reason: str) -> None:
        self.did("checking", "kill", "failed")
        self.assertIn(reason, self.hands.reason)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_sick_app_fails(self) -> None:
        """P81."""
        self.boot()
        self.life.worker_checked(11, "/healthz answered 500")
        self.failed("the health check failed: /healthz answered 500")

    def test_a_worker_that_dies_fails_it_at_once(self) -> None:
        """P81."""
        self.boot()
        self.life.worker_checked(11, None)
        self.life.worker_exited(12)
        self.failed("a worker died while it was starting")

    def test_a_boot_without_end_fails_at_the_limit_and_says_how_far_it_came(self) -> None:
        """P81."""
        self.boot()
        self.life.worker_checked(11, None)
        self.clock.advance(BOOT_LIMIT)
        self.failed("1 of 2 workers were ready after 30 s (health_timeout)")

    def test_a_server_that_never_reads_its_configuration_fails_at_the_limit(self) -> None:
        self.life.spawned()
        self.clock.advance(BOOT_LIMIT)
        self.did("kill", "failed")

    def test_one_that_is_not_wanted_any_more_is_killed(self) -> None:
        self.boot()
        self.life.drain()
        self.failed("it was stopped before it had started")

    def test_an_app_that_cannot_be_loaded_fails_with_what_it_raised(self) -> None:
        """P81: once its worker has gone, and written its traceback."""
        self.boot()
        self.life.worker_not_loaded(11, "ModuleNotFoundError: No module named 'flask'")
        self.assertEqual(self.hands.reason, "")
        self.life.worker_exited(11)
        self.assertEqual(self.hands.reason, "the app could not be loaded: ModuleNotFoundError: No module named 'flask'")
        self.life.worker_not_loaded(12, "the same")

    def test_a_server_that_exits_because_of_an_app_that_cannot_be_loaded_says_so(self) -> None:
        self.boot()
        self.life.worker_not_loaded(11, "SyntaxError: invalid syntax")
        self.life.exited("exit 3")
        self.assertEqual(self.hands.reason, "the app could not be loaded: SyntaxError: invalid syntax")

    def test_one_that_its_owner_finds_unfit_is_killed(self) -> None:
        self.boot()
        self.life.unfit("no room for its record")
        self.failed("no room for its record")

    def test_a_master_that_exits_has_failed_and_is_gone(self) -> None:
        """P81."""
        self.boot()
        self.life.exited("exit 1")
        self.did("checking", "failed", "gone")
        self.assertIn("the server ended while it was starting: exit 1", self.hands.reason)

    def test_a_master_that_exits_before_it_said_anything_has_failed(self) -> None:
        self.life.spawned()
        self.life.exited("exit 2")
        self.did("failed", "gone")

    def test_a_failed_one_is_gone_when_it_exits(self) -> None:
        self.boot()
        self.life.worker_exited(11)
        self.life.exited("signal 9")
        self.did("checking", "kill", "failed", "gone")


class FailuresBehindTheGate(GenerationCase):
    """A worker may hold somebody's request: what fails is drained."""

    def drained(self, reason: str) -> None:
        self.did("checking", "open_gate", "terminate", "failed")
        self.assertIn(reason, self.hands.reason)
        self.clock.advance(DRAIN_LIMIT)
        self.did("checking", "open_gate", "terminate", "failed", "kill")

    def test_a_worker_that_dies_at_the_gate(self) -> None:
        self.open_the_gate()
        self.life.worker_exited(11)
        self.drained("a worker died as it began to accept")

    def test_a_worker_that_does_not_accept_in_time(self) -> None:
        self.open_the_gate()
        self.life.worker_booted(11)
        self.clock.advance(BOOT_LIMIT)
        self.drained("1 of 2 workers were ready after 30 s (health_timeout)")

    def test_one_that_is_not_wanted_any_more(self) -> None:
        self.open_the_gate()
        self.life.drain()
        self.drained("it was stopped before it had started")

    def test_a_master_that_exits_at_the_gate_has_failed_and_is_gone(self) -> None:
        self.open_the_gate()
        self.life.exited("signal 9")
        self.did("checking", "open_gate", "failed", "gone")


class Probation(GenerationCase):
    """It serves already, and so does another one: what fails is drained, and never killed before its time."""

    TERMS = Terms(5.0, deaths=1, errors=3)

    def watch(self, terms: Terms = TERMS) -> None:
        self.serve()
        self.life.watch(terms)

    def found_wanting(self, reason: str) -> None:
        self.did("terminate", "wanting")
        self.assertEqual(self.hands.reason, reason)
        self.clock.advance(DRAIN_LIMIT)
        self.did("terminate", "wanting", "kill")

    def test_one_that_nothing_is_found_against_has_proven_itself(self) -> None:
        self.watch()
        self.clock.advance(4.9)
        self.did()
        self.clock.advance(0.1)
        self.did("proven")
        self.life.worker_exited(11)
        self.life.error_answered()
        self.did("proven")

    def test_one_that_serves_alone_has_proven_itself_at_once(self) -> None:
        self.watch()
        self.life.watched_enough()
        self.did("proven")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_third_answer_of_500_ends_it(self) -> None:
        self.watch()
        self.life.error_answered()
        self.life.error_answered()
        self.did()
        self.life.error_answered()
        self.found_wanting("3 answers of 500 and above in the first 5 s")

    def test_answers_from_before_the_last_worker_accepted_count_too(self) -> None:
        self.open_the_gate()
        self.life.worker_booted(11)
        for _ in range(3):
            self.life.error_answered()
        self.life.worker_booted(12)
        self.hands.done.clear()
        self.life.watch(self.TERMS)
        self.found_wanting("3 answers of 500 and above in the first 5 s")

    def test_the_first_worker_that_dies_ends_it(self) -> None:
        self.watch()
        self.life.worker_exited(11)
        self.found_wanting("a worker died in the first 5 s")

    def test_as_many_deaths_as_are_allowed_end_it(self) -> None:
        self.watch(Terms(0.5, deaths=2, errors=3))
        self.life.worker_exited(11)
        self.did()
        self.life.worker_exited(12)
        self.found_wanting("2 workers died in the first 0.5 s")

    def test_what_is_not_counted_does_not_end_it(self) -> None:
        self.watch(Terms(5.0, deaths=0, errors=0))
        for _ in range(100):
            self.life.error_answered()
            self.life.worker_exited(11)
        self.did()
        self.clock.advance(5)
        self.did("proven")

    def test_a_bad_answer_to_our_own_question_ends_it_at_once(self) -> None:
        self.watch()
        self.life.worker_checked(13, None)
        self.did()
        self.life.worker_checked(11, "/healthz answered 503")
        self.found_wanting("the health check failed: /healthz answered 503")

    def test_a_master_that_exits_is_gone(self) -> None:
        self.watch()
        self.life.exited("signal 9")
        self.did("wanting", "gone")
        self.assertEqual(self.hands.reason, "the server ended by itself: signal 9")

    def test_one_that_is_not_wanted_any_more_drains(self) -> None:
        self.watch()
        self.life.drain()
        self.found_wanting("it was stopped during its probation")

    def test_workers_that_gunicorn_replaces_are_no_news(self) -> None:
        self.watch()
        self.life.starting(2)
        self.life.worker_booted(13)
        self.did()

    def test_nothing_ends_it_twice(self) -> None:
        self.watch()
        self.life.worker_exited(11)
        self.life.worker_exited(12)
        self.life.watched_enough()
        self.life.drain()
        self.did("terminate", "wanting")


class ReportsAfterTheEnd(GenerationCase):
    """The pipe may be read after the exit is known."""

    def late_reports(self) -> None:
        done = list(self.hands.done)
        self.life.starting(2)
        self.life.worker_checked(11, "too late")
        self.life.worker_checked(12, None)
        self.life.worker_booted(11)
        self.life.worker_exited(12)
        self.life.error_answered()
        self.life.drain()
        self.did(*done)

    def test_they_change_nothing_for_one_that_failed(self) -> None:
        self.boot()
        self.life.worker_exited(11)
        self.late_reports()

    def test_they_change_nothing_for_one_that_drains(self) -> None:
        self.serve()
        self.life.drain()
        self.late_reports()

    def test_they_change_nothing_for_one_that_is_gone(self) -> None:
        self.serve()
        self.life.exited("exit 0")
        self.late_reports()

    def test_workers_that_gunicorn_replaces_change_nothing_for_one_that_serves(self) -> None:
        self.serve()
        self.life.worker_exited(11)
        self.life.worker_checked(13, "/healthz answered 500")
        self.life.worker_booted(13)
        self.did()


class AnyLife(RuleBasedStateMachine):
    """Things happen to a generation in any order in which the world can bring them."""

    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.hands = RecordingHands(self.clock)
        self.life = supervision.live(supervision.Generation(self.hands, self.clock, BOOT_LIMIT, DRAIN_LIMIT))
        self.wanted = 1
        self.started = self.exited = self.watched = False
        self.good: set[int] = set()
        self.next_pid = 11

    @initialize()
    def spawned(self) -> None:
        self.life.spawned()

    @precondition(lambda self: not self.started)
    @rule(workers=st.integers(1, 3))
    def the_configuration_is_read(self, workers: int) -> None:
        self.started = True
        self.wanted = workers
        self.life.starting(workers)

    @precondition(lambda self: self.started)
    @rule(target=workers)
    def a_worker_is_forked(self) -> int:
        self.next_pid += 1
        return self.next_pid

    @rule(worker=workers, problem=st.sampled_from([None, None, None, "sick"]))
    def a_worker_is_checked(self, worker: int, problem: str | None) -> None:
        if problem is None:
            self.good.add(worker)
        self.life.worker_checked(worker, problem)

    @precondition(lambda self: "open_gate" in self.hands.done)
    @rule(worker=workers)
    def a_worker_accepts(self, worker: int) -> None:
        self.life.worker_booted(worker)

    @rule(worker=consumes(workers))
    def a_worker_exits(self, worker: int) -> None:
        self.life.worker_exited(worker)

    @rule()
    def an_error_is_answered(self) -> None:
        self.life.error_answered()

    @precondition(lambda self: self.hands.done[-1:] == ["serving"] and not self.watched)
    @rule(deaths=st.integers(0, 2), errors=st.integers(0, 2))
    def its_probation_begins(self, deaths: int, errors: int) -> None:
        self.watched = True
        self.life.watch(Terms(5.0, deaths, errors))

    @precondition(lambda self: self.watched)
    @rule()
    def the_other_one_dies(self) -> None:
        self.life.watched_enough()

    @precondition(lambda self: not self.exited)
    @rule()
    def the_master_exits(self) -> None:
        self.exited = True
        self.life.exited("exit 0")

    @rule(seconds=st.sampled_from([1.0, 10.0, BOOT_LIMIT, DRAIN_LIMIT]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def it_is_to_drain(self) -> None:
        self.life.drain()

    @invariant()
    def the_gate_opens_only_when_all_are_checked(self) -> None:
        assert "open_gate" not in self.hands.done or len(self.good) >= self.wanted

    @invariant()
    def what_has_passed_the_gate_is_killed_only_at_the_drain_limit(self) -> None:
        if {"open_gate", "kill"} <= self.hands.at.keys():
            assert self.hands.at["kill"] >= self.hands.at["terminate"] + DRAIN_LIMIT

    @invariant()
    def it_serves_or_fails_at_most_once(self) -> None:
        assert self.hands.done.count("serving") + self.hands.done.count("failed") <= 1

    @invariant()
    def a_probation_ends_at_most_once_and_has_ended_when_it_is_gone(self) -> None:
        ends = self.hands.done.count("proven") + self.hands.done.count("wanting")
        assert ends <= int(self.watched)
        assert not self.exited or ends == int(self.watched)

    @invariant()
    def it_is_gone_as_soon_as_it_has_exited_and_never_before(self) -> None:
        assert self.hands.done.count("gone") == int(self.exited)
        if self.exited:
            assert self.hands.done[-1] == "gone"
            assert self.hands.done.count("serving") + self.hands.done.count("failed") == 1
            assert not self.clock.getDelayedCalls()

    def teardown(self) -> None:
        if not self.exited:
            self.the_master_exits()
            self.it_is_gone_as_soon_as_it_has_exited_and_never_before()


class AnyLifeKeepsItsPromises(SynchronousTestCase):
    """The state machine test, so that both runners run it."""

    def test_whatever_happens_in_whatever_order(self) -> None:
        run_state_machine_as_test(AnyLife, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))
