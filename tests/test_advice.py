"""What is said of a deployment or a delivery: what happened, what is the site instead, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.advice import Advice, Present, of_delivery, of_deployment, of_silence
from twisted_hook.durations import took, usual
from twisted_hook.model import Delivery, Deployment, Outcome, Phase, Push, Step, Trigger, Verdict

REVISION = "1a2b3c4" + "0" * 33
BEGUN = Deployment("6", "web", Trigger.PUSH, Phase.FETCHING, 0.0, revision=REVISION, subject="Hello", started_at=1.0)
REFUSED = "branch main could not be fetched: the remote refused the deploy key"
UNKNOWN = "branch main could not be fetched: the remote's host key is not in known_hosts"
SERVING = Present("9f8e7d6" + "0" * 33, "Say nothing", "serving")


def ended(
    outcome: Outcome, reason: str = "", phase: Phase = Phase.FETCHING, present: Present = SERVING, **changed: Any
) -> Advice:
    return of_deployment(replace(BEGUN, outcome=outcome, reason=reason, phase=phase, **changed), present)


def failed(reason: str, phase: Phase = Phase.FETCHING, **changed: Any) -> Advice:
    return ended(Outcome.FAILED, reason, phase, **changed)


def commands(advice: Advice) -> list[str]:
    return [remedy.command for remedy in advice.remedies if remedy.command]


class WhatFailed(SynchronousTestCase):
    """A failure says what failed, what serves, and what to do."""

    def test_a_step_that_failed_is_to_be_read_and_run_by_hand(self) -> None:
        step = Step("test", "pytest -q", 1.0, 3.21, "exit 1")
        advice = failed("step 'test' failed: exit 1\n1 failed, 2 passed", Phase.BUILDING, steps=(step,))
        self.assertEqual(advice.what, "It failed while it was being built after 3.2 s: step 'test' failed: exit 1.")
        self.assertEqual(advice.said, "1 failed, 2 passed")
        self.assertEqual(advice.now, "web still serves 9f8e7d6 Say nothing.")
        self.assertEqual(commands(advice), ["pytest -q", "hookdeploy log 6", "hookdeploy deploy web"])
        self.assertIn("in a checkout of 1a2b3c4", advice.remedies[0].words)

    def test_what_always_helps_is_said_where_nothing_is_known(self) -> None:
        self.assertEqual(commands(failed("who knows")), ["hookdeploy log 6", "hookdeploy deploy web"])

    def test_each_known_reason_has_its_remedy_first(self) -> None:
        for reason, words in (
            (REFUSED + "\ngit@github.com: Permission denied (publickey).", "~/.ssh/id_ed25519.pub"),
            (UNKNOWN + "\nNo ED25519 host key is known for github.com",
             "ssh-keyscan -t ed25519 github.com >> ~/.ssh/known_hosts"),
            (UNKNOWN + "\nREMOTE HOST IDENTIFICATION HAS CHANGED!", "somebody between"),
            ("branch main could not be fetched: authentication: the remote wants a user name", "private"),
            ("branch main could not be fetched: the remote's name could not be resolved", "git ls-remote"),
            ("branch main could not be fetched: ref gone: the remote has no such branch or tag", "git ls-remote"),
            ("branch main could not be fetched: the disk is full", "df -h"),
            ("the disk of /var is nearly full: 1 MiB are free", "df -h"),
            ("step 'deps' failed: exit 1\nOSError: [Errno 28] No space left on device", "df -h"),
            ("step 'build' failed: timeout after 900 s", "step_timeout"),
            ("step 'build' failed: could not start: no such program: npm", "PATH"),
            ("step 'build' failed: signal 9", "dmesg"),
            ("the new server did not start: the app could not be loaded: ModuleNotFoundError: No module named 'flask'",
             "flask is not in its environment"),
            ("the new server did not start: the app could not be loaded: NameError: x", "import it by hand"),
            ("the new server did not start: the health check failed: /healthz answered 500", "/healthz has to answer"),
            ("the new server did not start: 0 of 2 workers were ready after 30 s (health_timeout)", "health_timeout"),
            ("cannot listen on 127.0.0.1:80: Address already in use", "ss -ltnp"),
            ("/srv/site has local changes: a.py", "git status"),
            ("the project has a uv.lock, but uv is not installed; install uv or set build", "pip install uv"),
            ("KeyError('x'); hookdeploy's own log has the traceback", "journalctl"),
        ):  # fmt: skip
            first = failed(reason).remedies[0]
            self.assertIn(words, f"{first.words}: {first.command}", reason)

    def test_the_page_for_a_deploy_key_is_named_where_the_repository_is_known(self) -> None:
        """Whatever way the address is written."""
        for url, page in (
            ("git@github.com:acme/blog.git", "https://github.com/acme/blog/settings/keys;"),
            ("ssh://git@github.com/acme/blog", "https://github.com/acme/blog/settings/keys;"),
            ("git@gitlab.com:acme/blog.git", "https://gitlab.com/acme/blog/-/settings/repository"),
            ("git@git.example.com:acme/blog.git", "settings at git.example.com,"),
        ):
            advice = failed(REFUSED, present=replace(SERVING, repository=url, user="deploy"))
            self.assertIn(page, advice.remedies[1].words)
            self.assertIn("as deploy", advice.remedies[0].words)

    def test_what_a_step_has_printed_is_not_taken_for_the_reason(self) -> None:
        for printed in ("host key verification", "ssh health_timeout", "/x answered 500", "CONFLICT (content)"):
            advice = failed(f"step 'test' failed: exit 1\n{printed}")
            self.assertIn("run the step by hand", advice.remedies[0].words)

    def test_what_is_tried_again_by_itself_is_not_to_be_repeated(self) -> None:
        advice = failed("branch main could not be fetched: the disk is full", transient=True)
        self.assertIn("tried again by itself", advice.remedies[-1].words)
        self.assertNotIn("hookdeploy deploy web", commands(advice))

    def test_a_failed_probation_says_that_the_commit_is_not_tried_again(self) -> None:
        reason = "the new server did not pass its probation: 3 requests failed"
        advice = ended(Outcome.ROLLED_BACK, reason, Phase.PROBATION)
        self.assertTrue(advice.what.startswith("It was taken back on probation: "))
        self.assertIn("1a2b3c4 is not tried again by itself", advice.remedies[1].words)

    def test_what_is_the_site_instead_is_told(self) -> None:
        for present, words in (
            (Present(), "Nothing of web was deployed yet."),
            (Present(REVISION, "Hello"), "web stays at 1a2b3c4 Hello."),
            (replace(SERVING, state="restarting", problem="exit 1"),
             "The server of web is restarting, with 9f8e7d6 Say nothing. exit 1"),
        ):  # fmt: skip
            self.assertEqual(failed("no", present=present).now, words)


class OtherEnds(SynchronousTestCase):
    """What is no failure is explained too."""

    def test_why_nothing_was_deployed(self) -> None:
        """By a pin, by its paths, by its message, as it runs already, and as it was put back."""
        for reason, command in (
            ("the app is pinned to what it serves", ["hookdeploy unpin web", "hookdeploy deploy web"]),
            ("1a2b3c4 changes nothing of blog/** since 9f8e7d6", ["hookdeploy deploy web"]),
            ("1a2b3c4 has a message that says [skip deploy]", ["hookdeploy deploy web"]),
            ("1a2b3c4 was put back, so it waits for a newer commit", ["hookdeploy deploy web"]),
            ("1a2b3c4 runs already", []),
        ):
            advice = ended(Outcome.UNCHANGED, reason)
            self.assertEqual((advice.what, commands(advice)), (f"Nothing was deployed: {reason}.", command))

    def test_the_newer_one_is_named(self) -> None:
        self.assertEqual(commands(ended(Outcome.SUPERSEDED, superseded_by="7")), ["hookdeploy why 7"])

    def test_what_was_cancelled_or_cut_off_says_where_it_stood(self) -> None:
        cancelled = ended(Outcome.CANCELLED, "somebody cancelled it", Phase.BUILDING)
        self.assertEqual(cancelled.what, "It was cancelled while it was being built: somebody cancelled it.")
        cut_off = ended(Outcome.INTERRUPTED, "it was cut off while 'migrate' migrated", Phase.MIGRATING)
        self.assertEqual(commands(cut_off), ["hookdeploy log 6", "hookdeploy deploy web"])

    def test_what_was_deployed_is_there_or_was(self) -> None:
        now = Present(REVISION, "Hello", "serving")
        self.assertIn("is what there is now", ended(Outcome.DEPLOYED, present=now).what)
        self.assertIn("by now 9f8e7d6 has taken its place", ended(Outcome.DEPLOYED).what)

    def test_what_has_not_ended_says_what_it_waits_for(self) -> None:
        waiting = replace(BEGUN, started_at=None, phase=Phase.QUEUED)
        self.assertEqual(commands(of_deployment(waiting, Present(paused=True))), ["hookdeploy resume web"])
        self.assertEqual(commands(of_deployment(waiting, SERVING)), ["hookdeploy log -f 6"])
        self.assertEqual(commands(of_deployment(BEGUN, SERVING)), ["hookdeploy log -f 6", "hookdeploy cancel 6"])

    @given(st.sampled_from(Outcome), st.sampled_from(Phase), st.text(), st.none() | st.text())
    def test_whatever_it_says_there_is_something_to_say(
        self, outcome: Outcome, phase: Phase, reason: str, repository: str | None
    ) -> None:
        advice = ended(outcome, reason, phase, present=replace(SERVING, repository=repository))
        self.assertTrue(advice.what)


class Deliveries(SynchronousTestCase):
    """Why did my push not deploy?"""

    def test_a_push_that_nobody_waits_for_says_what_it_told_of(self) -> None:
        push = Push("acme/blog", "refs/heads/topic", REVISION)
        new = Delivery("3", "github", "g", "push", Verdict.IGNORED, "no app deploys this branch", (push,), 0.0)
        advice = of_delivery(new)
        self.assertEqual(
            advice.what,
            "The hook github was told of refs/heads/topic of acme/blog, and nothing was deployed: "
            "no app deploys this branch.",
        )
        self.assertEqual(commands(advice), ["hookdeploy status", "hookdeploy check"])
        led = of_delivery(replace(new, verdict=Verdict.ACCEPTED, deployments=("5", "6")))
        self.assertEqual(commands(led), ["hookdeploy why 5", "hookdeploy why 6"])
        pruned = of_delivery(replace(new, verdict=Verdict.ACCEPTED))
        self.assertIn("not kept any more", pruned.what)

    def test_an_event_that_is_no_push_says_so(self) -> None:
        other = Delivery("3", "github", "g", "issues", Verdict.IGNORED, "event issues is not a push", (), 0.0)
        self.assertIn("an event issues", of_delivery(other).what)
        self.assertIn("send push events", of_delivery(other).remedies[0].words)
        self.assertEqual(of_delivery(replace(other, event="ping", reason="ping")).remedies, ())

    def test_of_a_push_that_never_came_it_says_where_to_look(self) -> None:
        self.assertIn("hookdeploy doctor", commands(of_silence()))


class HowLong(SynchronousTestCase):
    """The time that each phase took, against its usual."""

    def made(self, id: str, building: float, outcome: Outcome = Outcome.DEPLOYED) -> Deployment:
        phases = ((Phase.FETCHING, 1.0), (Phase.BUILDING, 2.0), (Phase.DONE, 2.0 + building))
        return replace(BEGUN, id=id, outcome=outcome, phases=phases, finished_at=2.0 + building)

    def test_each_phase_takes_until_the_next(self) -> None:
        self.assertEqual(took(self.made("1", 3.0)), {Phase.QUEUED: 1.0, Phase.FETCHING: 1.0, Phase.BUILDING: 3.0})
        self.assertEqual(took(BEGUN), {})

    def test_the_usual_is_the_median_of_good_ones_of_its_kind(self) -> None:
        found = [
            self.made("6", 99.0),  # itself
            self.made("5", 98.0, Outcome.FAILED),
            replace(self.made("4", 0.0), trigger=Trigger.ROLLBACK),
            *(self.made(str(number), float(number)) for number in (3, 2, 1)),
        ]
        self.assertEqual(usual(found, like=BEGUN)[Phase.BUILDING], 2.0)
        self.assertEqual(usual([], like=BEGUN), {})
        self.assertEqual(
            usual([self.made("x", 1.0)] * 10 + [self.made("x", 9.0)] * 90, like=BEGUN)[Phase.BUILDING], 1.0
        )
