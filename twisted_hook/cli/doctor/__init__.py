"""``hookdeploy doctor``: looks at the world as the service would, and says what is wrong and how to mend it.

It changes nothing and deploys nothing. What waits for other machines is looked at side by side, each for a limited
time; a server may run or not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from twisted_hook.cli import FAILED
from twisted_hook.cli.client import server_options
from twisted_hook.cli.doctor import git, machine, ports, served, service, webhook
from twisted_hook.cli.doctor.finding import Finding, Status, warning
from twisted_hook.cli.doctor.patient import Patient, meet
from twisted_hook.configfile import DEFAULT_NAME
from twisted_hook.redaction import clean

AT_ONCE = 8
Check = Callable[[], Iterable[Finding]]
_SIGNS = {
    Status.OK: ("✓", "green"),
    Status.WARNING: ("!", "yellow"),
    Status.PROBLEM: ("✗", "bold red"),
    Status.SKIPPED: ("·", "dim"),
}


@click.command()
@server_options
def doctor(*, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Look at everything that a deployment needs, and say how to mend what is wrong.

    It works whether the server runs or not. Exits with 1 if there is a problem; warnings alone are none.
    """
    if config is None and state is None and Path(DEFAULT_NAME).exists():
        config = Path(DEFAULT_NAME)
    patient = meet(config, state, os.environ)
    findings = examine(patient)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show(findings)
    if any(finding.status is Status.PROBLEM for finding in findings):
        raise click.exceptions.Exit(FAILED)


def examine(patient: Patient) -> list[Finding]:
    """Everything that there is to find, in the order in which a person would look."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [
            Finding(each.check, each.status, *(_shown(patient, words) for words in (each.finding, each.remedy)))
            for findings in pool.map(_looked, checks(patient))
            for each in findings
        ]


def _shown(patient: Patient, words: str) -> str:
    """In one line: what was said out there may look like another finding."""
    return " ".join(patient.redactor.text(words).splitlines())


def checks(patient: Patient) -> Iterator[tuple[str, Check]]:
    """What is looked at, by name."""
    for name, look in (
        ("user", machine.user),
        ("server", machine.server),
        ("configuration", machine.configuration),
        ("python", machine.python),
        ("git", git.version),
        ("permissions", machine.permissions),
        ("disk", machine.disk),
        ("clock", machine.clock),
        ("door", ports.doors),
        ("answer", service.answers_here),
        ("public address", service.answers_in_public),
        ("systemd", service.systemd),
    ):
        yield name, partial(look, patient)
    config = patient.config
    hooks = {hook.name: hook for hook in config.hooks} if config else {}
    for app in config.apps.values() if config else ():
        yield f"remote of {app.name}", partial(git.remotes, patient, app)
        yield f"gunicorn of {app.name}", partial(served.gunicorn, patient, app)
        yield f"bind of {app.name}", partial(ports.binds, patient, app)
        yield f"health of {app.name}", partial(served.health, patient, app)
        yield f"webhook of {app.name}", partial(webhook.webhooks, patient, hooks[app.hook], app)


def _looked(named: tuple[str, Check]) -> Sequence[Finding]:
    name, look = named
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - one check that fails is not to hide what the others find
        words = f"this could not be looked at: {type(error).__name__}: {clean(str(error))}"
        return [warning(name, words, "please report it with this line")]


# --- for people


def show(findings: Sequence[Finding]) -> None:
    """A line for each, and under it what mends it, in one piece, to be pasted."""
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        sign, style = _SIGNS[finding.status]
        line = Text.assemble((sign, style), " ", (finding.check.ljust(width), "bold"), "  ", finding.finding)
        console.print(line, soft_wrap=True)
        if finding.remedy and finding.status is not Status.OK:
            console.print(Text(f"{' ' * (width + 4)}→ {finding.remedy}", style="cyan"), soft_wrap=True)
    console.print()
    console.print(summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """How many of each kind, in words."""
    count = {status: sum(finding.status is status for finding in findings) for status in Status}
    if not count[Status.PROBLEM] and not count[Status.WARNING]:
        return "Nothing is wrong."
    problems, warnings = count[Status.PROBLEM], count[Status.WARNING]
    return f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}."
