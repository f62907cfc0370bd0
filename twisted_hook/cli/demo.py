"""``hookdeploy demo``: all of it on this machine: an origin, an app, a server, a push, a new page.

The app is deployed in release mode from a hookdeploy.toml, as most will be, so that one sees what one gets. Whatever
the end, no process and no directory is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
import httpx
from rich.console import Console

from twisted_hook.cli import FAILED
from twisted_hook.cli.client import Api, ApiError, NotRunning, json_option
from twisted_hook.cli.delivery import Pushed, Target, deliver, push
from twisted_hook.cli.stage import APP, BRANCH, PATIENCE, Server, StageFailed, Visitors, Workplace
from twisted_hook.commands import Ambient
from twisted_hook.localgit import NotUsable, check_git
from twisted_hook.redaction import clean
from twisted_hook.refs import HEADS

T = TypeVar("T")

PAUSE = 0.02
"""Seconds between two looks at the page, which are the visitors of the demo too."""
IDLE_PAUSE = 0.25
DYING = 1.0
"""Seconds for which a server that has hung up is given to be gone."""
BEFORE, AFTER = "Hello, world!", "Hello from a new release!"


class Stopped(Exception):
    """Somebody wants it to end."""


class Wish:
    """Whether somebody wants the demo to end. A signal only says so: what was begun is then put away in order."""

    def __init__(self) -> None:
        self.to_end = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear it meanwhile. Afterwards all is put away and the process ends: one more Ctrl-C has nothing to say."""
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        ]
        for number in numbers:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.to_end = True


@dataclass(frozen=True, slots=True)
class Shown:
    """One push as it was seen from outside."""

    commit: str
    answer: str
    """The hook's answer."""
    page: str
    seconds: float
    """From the push to the new page."""
    visits: int
    """How often the page was asked for meanwhile."""
    phases: Mapping[str, float]
    """Seconds in each phase of the deployment, as the API tells it."""


class Demo:
    """What happens on the stage, step by step."""

    def __init__(self, workplace: Workplace, server: Server, visitors: Visitors, wish: Wish) -> None:
        self._workplace = workplace
        self._server = server
        self._visitors = visitors
        self._wish = wish
        self._api = Api(workplace.state)

    def close(self) -> None:
        self._api.close()

    def first_page(self) -> str:
        """Start the server, which deploys what it finds by itself."""
        self._server.start()
        self._until(lambda: self._deployed(commit=None), "first deployment")
        return self._until(self._visitors.look, "page")

    def push(self, greeting: str) -> Shown:
        """Change the page, push, and send the hook; wait for the new page."""
        commit = self._workplace.commit(greeting)
        visits = self._visitors.answered
        started = time.monotonic()
        self._workplace.push()
        answer = self._send(commit)
        page = self._until(lambda: self._page_with(commit[:7]), "new page")
        seconds = time.monotonic() - started
        deployment = self._until(lambda: self._deployed(commit), "end of the deployment")
        if self._visitors.failed:
            raise StageFailed(f"a visitor got no page while it was deployed: {self._visitors.failed[0]}")
        return Shown(commit, answer, page, seconds, self._visitors.answered - visits, _phases(deployment))

    def follow(self, known: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Tell of each deployment after a known one that ends, until somebody wants the demo to end.

        Raises ``Stopped``.
        """
        while True:
            self._pause(IDLE_PAUSE)
            newest = self.newest()
            if newest.get("outcome") and newest["id"] != known.get("id"):
                tell(newest)
                known = newest

    def _send(self, commit: str) -> str:
        pushed = Pushed("you/hello", HEADS + BRANCH, commit)
        target = Target(self._workplace.hook, self._workplace.secret.encode())
        answer = deliver(target, "push", push(pushed), str(uuid.uuid4()))
        if answer.status_code != 202 or answer.json().get("status") != "accepted":
            raise StageFailed(f"the hook was answered with {answer.status_code}: {answer.text}")
        return f"{answer.status_code} {answer.json()['status']}"

    def _page_with(self, text: str) -> str:
        page = self._visitors.look()
        return page if text in page else ""

    def _deployed(self, commit: str | None) -> Mapping[str, Any] | None:
        """The newest deployment, if it has ended and is of this commit; None is any commit."""
        newest = self.newest()
        if newest.get("outcome") is None or commit not in (None, newest["revision"]):
            return None
        if newest["outcome"] != "deployed":
            raise StageFailed(f"the deployment {newest['outcome']}: {newest['reason']}")
        return newest

    def newest(self) -> Mapping[str, Any]:
        """The newest deployment; empty if there is none."""
        try:
            return next(iter(self._api.get("/deployments", app=APP, limit=1)), {})
        except NotRunning:  # not yet; or not any more, which `_pause` finds
            return {}
        except ApiError:  # if it was killed in the middle of its answer, that is what is to be told
            self._server.check(DYING)
            raise

    def _until(self, look: Callable[[], T | None], what: str) -> T:
        """What a look gives as soon as it gives something."""
        limit = time.monotonic() + PATIENCE
        while not (found := look()):
            if time.monotonic() > limit:
                raise StageFailed(f"no {what} within {PATIENCE:g} s")
            self._pause(PAUSE)
        return found

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)
        self._server.check()
        if self._wish.to_end:
            raise Stopped


def _phases(deployment: Mapping[str, Any]) -> dict[str, float]:
    """How long each phase lasted, in seconds."""
    marks = [("queued", deployment["queued_at"])]
    marks += [(entered["phase"], entered["at"]) for entered in deployment["phases"] if entered["phase"] != "done"]
    times = [datetime.fromisoformat(at) for at in (*(at for _, at in marks), deployment["finished_at"])]
    return {phase: (times[place + 1] - times[place]).total_seconds() for place, (phase, _) in enumerate(marks)}


# --- the command


@click.command()
@click.option("--once", is_flag=True, help="Check that it works, put it away, and exit with 0 or 1.")
@json_option
def demo(*, once: bool, as_json: bool) -> None:
    """Show all of it on this machine: an origin, an app, a server, a push, and a page that changes.

    Needs git, and no network. It stays until Ctrl-C, so that you can push too; then nothing is left of it.
    """
    say = Console(highlight=False, markup=False, soft_wrap=True, quiet=as_json)
    wish = Wish()
    with wish.heard(), ExitStack() as put_away:
        directory = Path(tempfile.mkdtemp(prefix="hookdeploy-demo-")).resolve()
        put_away.callback(shutil.rmtree, directory)
        server = put_away.enter_context(closing(Server(directory)))
        try:
            check_git(Ambient.from_environ(os.environ))
            workplace = Workplace(directory)
            visitors = put_away.enter_context(closing(Visitors(workplace.page)))
            it = put_away.enter_context(closing(Demo(workplace, server, visitors, wish)))
            shown = _show(say, it, workplace)
            if as_json:
                click.echo(
                    json.dumps({"ok": True, "url": workplace.page, "clone": str(workplace.clone), **asdict(shown)})
                )
            if not once:
                _stay(say, it, workplace)
        except (Stopped, StageFailed, NotUsable, ApiError, httpx.HTTPError) as error:
            _explain(error, server, as_json=as_json)
            raise click.exceptions.Exit(FAILED) from None


def _show(say: Console, demo: Demo, workplace: Workplace) -> Shown:
    say.print("1  A repository as the origin, and a clone of it to work in:", style="bold")
    workplace.make()
    workplace.commit(BEFORE)
    workplace.push()
    say.print(f"     {workplace.origin}\n     {workplace.clone}")

    say.print("2  The server, as a process of its own; it deploys what it finds at once:", style="bold")
    say.print(f"     twistd -n hookdeploy --config {workplace.config}")
    before = demo.first_page()
    say.print(f"     {workplace.page} says:")
    say.print(f"     | {before}", style="cyan")

    say.print("3  A change of the page: git commit, git push, and the hook that a forge would send:", style="bold")
    shown = demo.push(AFTER)
    say.print(f"     POST {workplace.hook} was answered with {shown.answer}")
    say.print(f"     {workplace.page} says, {shown.seconds:.2f} s after the push:")
    say.print(f"     | {shown.page}", style="cyan")

    say.print("4  Where the time went:", style="bold")
    for phase, seconds in shown.phases.items():
        say.print(f"     {phase:<10}{seconds:6.2f} s")
    say.print(f"     {'in all':<10}{shown.seconds:6.2f} s, from git push to the new page")
    say.print(f"     {shown.visits} visits of the page meanwhile, and none without an answer.")
    return shown


def _stay(say: Console, demo: Demo, workplace: Workplace) -> None:
    known = demo.newest()  # before anybody is asked to push
    clone, config = shlex.quote(str(workplace.clone)), shlex.quote(str(workplace.config))
    say.print("\nNow you. This changes the page again, each time:", style="bold")
    say.print(
        f'cd {clone} && echo "It is $(date +%T)" > greeting.txt && git commit -aqm "What time it is" '
        f"&& git push -q origin {BRANCH} && {_own_name()} send --config {config}"
    )
    say.print(f"\nThe page is {workplace.page} and its clone is {workplace.clone}.")
    say.print("Ctrl-C ends the server and removes the directory.\n")
    with contextlib.suppress(Stopped):
        demo.follow(known, lambda deployment: say.print(_in_a_line(deployment)))
    say.print("\nThat was it; nothing is left.")


def _in_a_line(deployment: Mapping[str, Any]) -> str:
    at = datetime.fromisoformat(deployment["finished_at"]).astimezone()
    what = f"{(deployment['revision'] or '')[:7]} {deployment['subject'] or ''}"
    return clean(f"{at:%H:%M:%S}  {deployment['outcome']} {what}  {deployment['reason']}").rstrip()


def _own_name() -> str:
    """How this very command is called from a shell."""
    beside = Path(sys.executable).with_name("hookdeploy")
    if shutil.which("hookdeploy") == str(beside):
        return "hookdeploy"
    if beside.exists():
        return shlex.quote(str(beside))
    return f"{shlex.quote(sys.executable)} -c 'from twisted_hook.cli import main; main()'"


def _explain(error: Exception, server: Server, *, as_json: bool) -> None:
    match error:
        case Stopped():
            what = "it was ended before it was over"
        case NotUsable():
            what = f"git {error}"
        case _:
            what = clean(str(error))
    if as_json:
        click.echo(json.dumps({"ok": False, "error": what, "log": server.last_words()}))
        return
    click.echo(f"The demo failed: {what}", err=True)
    if words := server.last_words():
        click.echo(f"The server's last words:\n{words}", err=True)
