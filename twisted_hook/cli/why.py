"""``hookdeploy why``: what became of a deployment or a delivery, why, and what to do next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twisted_hook.cli.client import Api, ApiError, path_of, running_server, server_options
from twisted_hook.cli.follow import BAD_ENDS, Answer, commit
from twisted_hook.cli.tables import ago
from twisted_hook.cli.which import by_id, deployment_meant, newest_deployment
from twisted_hook.redaction import clean

if TYPE_CHECKING:
    from twisted_hook.advice import Advice, Present

LAST_LINES = 15
"""Lines of the log that are shown where the reason has none of them."""


@click.command()
@click.argument("id", required=False)
@server_options
def why(*, id: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Say what became of ID and why, what serves now, and what to do next.

    ID is a deployment, a delivery ("why did my push not deploy?"), or the name of an app for its newest deployment.
    Without it, it is the newest deployment, and the newest delivery if that came later and led to nothing.
    """
    with running_server(config, state, as_json=as_json) as api:
        told = list(_told(api, id))
        if as_json:
            _, answer, advice = told[0]
            click.echo(json.dumps({**answer, "advice": asdict(advice)}))
            return
        click.echo(clean("\n\n".join(in_words(head, advice) for head, _, advice in told)))


Told = tuple[str, Answer, "Advice"]
"""A heading, what the API says, and what is to be said of it."""


def _told(api: Api, id: str | None) -> Iterator[Told]:
    """What there is to say, the first of it first."""
    delivery = None if id is None or by_id(api, "deployments", id) else by_id(api, "deliveries", id)
    if delivery is not None:
        yield _of_delivery(delivery)
        for each in delivery["deployments"][-1:]:
            yield _of_deployment(api, api.get(f"/deployments/{each}"))
        return
    if id is not None:
        yield _of_deployment(api, deployment_meant(api, id))
        return
    yield from _newest(api)


def _newest(api: Api) -> Iterator[Told]:
    newest, arrived = newest_deployment(api, None), api.get("/deliveries", limit=1)
    led_to_nothing = [each for each in arrived if not each["deployments"]]
    for each in led_to_nothing:
        if newest is None or each["received_at"] > newest["queued_at"]:
            yield _of_delivery(each)
    if newest is not None:
        yield _of_deployment(api, newest)
    elif not led_to_nothing:
        from twisted_hook.advice import of_silence

        yield "Nothing was deployed yet.", {}, of_silence()


def _of_delivery(answer: Answer) -> Told:
    from twisted_hook.advice import of_delivery
    from twisted_hook.cli.answers import delivery_of

    head = f"delivery {answer['id']}, {answer['verdict']} {ago(answer['received_at'], datetime.now(UTC))}"
    return head, answer, of_delivery(delivery_of(answer))


def _of_deployment(api: Api, answer: Answer) -> Told:
    from dataclasses import replace

    from twisted_hook.advice import of_deployment
    from twisted_hook.cli.answers import deployment_of

    advice = of_deployment(deployment_of(answer), _present(api, str(answer["app"])))
    if answer["outcome"] in BAD_ENDS and not advice.said:
        advice = replace(advice, said=_last_lines(api, str(answer["id"])))
    what = f"{answer['trigger']}, {ago(answer['queued_at'], datetime.now(UTC))}"
    return f"{answer['app']}: deployment {answer['id']} {commit(answer)} ({what})", answer, advice


def _present(api: Api, app: str) -> Present:
    from twisted_hook.advice import Present
    from twisted_hook.cli.answers import present_of

    try:
        return present_of(api.get(path_of(app)), _other_user(api.state))
    except ApiError as error:
        if error.status != 404:
            raise
        return Present()  # it is not configured any more


def _other_user(state: Path) -> str | None:
    """As whom the server works, if that is not who asks."""
    try:
        return None if state.stat().st_uid == os.getuid() else state.owner()
    except (OSError, KeyError):
        return None


def _last_lines(api: Api, id: str) -> str:
    said = api.text(f"/deployments/{id}/log").decode("utf-8", "replace")
    return "\n".join(said.splitlines()[-LAST_LINES:])


def in_words(head: str, advice: Advice) -> str:
    """All of it, as it is printed."""
    said = "\n".join(f"    {line}" for line in advice.said.splitlines())
    parts = [f"{head}\n{advice.what}", said, advice.now, _remedies(advice)]
    return "\n\n".join(part for part in parts if part)


def _remedies(advice: Advice) -> str:
    lines = ["Next:"] if advice.remedies else []
    for number, remedy in enumerate(advice.remedies, 1):
        lines.append(f"  {number}. {remedy.words}{':' if remedy.command else ''}")
        lines += [f"       {remedy.command}"] if remedy.command else []
    return "\n".join(lines)
