"""The commands that steer the apps of a running server: deploy, rollback, replay, cancel, pin, unpin, pause, resume.

They ask the API, and decide nothing themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click

from twisted_hook.cli import FAILED
from twisted_hook.cli.client import (
    Api,
    ApiError,
    NotRunning,
    app_argument,
    app_path,
    path_of,
    running_server,
    server_options,
)
from twisted_hook.cli.follow import GOOD_ENDS, Answer, Progress, bad_end, commit, follow, good_end, usual_of
from twisted_hook.redaction import clean

detach_option = click.option("--detach", is_flag=True, help="Do not wait for the end.")


# --- what deploys


@click.command()
@app_argument
@click.argument("revision", required=False)
@detach_option
@server_options
def deploy(
    *, app: str | None, revision: str | None, detach: bool, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Deploy the tip of APP's branch, its newest tag, or REVISION, and follow it to its end.

    APP may be left out where there is one only. REVISION is the id of a commit, or at least the first four digits of
    it. Exits with 0 if it was deployed or runs already, with 1 if it was not, and with 3 if no server runs.
    """
    wish = {} if revision is None else {"revision": revision}
    _deploy(app, "deploy", wish, detach=detach, config=config, state=state, as_json=as_json)


@click.command()
@app_argument
@click.option("--to", metavar="RELEASE", help="Which kept release.  [default: the good one before the current]")
@detach_option
@server_options
def rollback(
    *, app: str | None, to: str | None, detach: bool, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Put an earlier release of APP back, without network and without a build, and follow it to its end.

    What is taken back is not deployed again by a repeated delivery; a newer commit is, and what you deploy yourself.
    """
    wish = {} if to is None else {"to": to}
    _deploy(app, "rollback", wish, detach=detach, config=config, state=state, as_json=as_json)


def _deploy(
    name: str | None,
    how: str,
    wish: Mapping[str, str],
    *,
    detach: bool,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    with running_server(config, state, as_json=as_json) as api:
        path = app_path(api, name)
        try:
            deployment = api.post(f"{path}/{how}", wish)
        except ApiError as error:
            if error.status != 404 or "to" not in wish:
                raise
            raise ApiError(f"{error}{_kept(api.get(path))}", error.status) from error
        if detach:
            _show(deployment, _on_its_way(deployment, how), as_json=as_json)
        else:
            _see_to_the_end(api, [deployment], lambda ends: ends[0], as_json=as_json)


def _on_its_way(deployment: Answer, how: str) -> str:
    return f"{deployment['app']}: {how} {deployment['id']} is on its way"


def _kept(app: Answer) -> str:
    """What could be put back instead."""
    lines = (f"\n  {each['release']}{' (current)' if each['current'] else ''} {commit(each)}" for each in app["kept"])
    return clean("".join(("; it keeps:", *lines))) if app["kept"] else ""


@click.command()
@click.argument("delivery")
@detach_option
@server_options
def replay(*, delivery: str, detach: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Deploy once more what DELIVERY is for by now, and follow each deployment to its end, one after the other.

    It deploys the branch's tip or the newest tag, as any delivery does, and not again what was put back. DELIVERY is
    the id that hookdeploy has answered the forge with, and not the forge's own; the API lists them.
    """
    with running_server(config, state, as_json=as_json) as api:
        made = api.post(f"/deliveries/{quote(delivery, safe='')}/replay")
        if detach:
            in_words = "\n".join(_on_its_way(each, "replay") for each in made["deployments"])
            _show(made, in_words, as_json=as_json)
        else:
            _see_to_the_end(api, made["deployments"], lambda ends: {"deployments": ends}, as_json=as_json)


# --- what follows a deployment


def _see_to_the_end(
    api: Api, begun: Sequence[Answer], in_json: Callable[[Sequence[Answer]], object], *, as_json: bool
) -> None:
    """Follow each to its end, one after the other, and end with 1 unless all ends are good; ``in_json`` is given them.

    A replay waits while its app is paused, and so is not followed: it is as good as it can be.
    """
    ends = list(begun)
    try:
        for place, deployment in enumerate(begun):
            if _is_held_back(api, deployment):
                _say_that_it_waits(deployment, as_json=as_json)
            else:
                _follow(api, ends, place, as_json=as_json)
    except KeyboardInterrupt:
        _leave(ends, in_json, as_json=as_json)
    if as_json:
        click.echo(json.dumps(in_json(ends)))
    if any(each["outcome"] is not None and each["outcome"] not in GOOD_ENDS for each in ends):
        raise click.exceptions.Exit(FAILED)


def _is_held_back(api: Api, deployment: Answer) -> bool:
    return deployment["trigger"] == "replay" and bool(api.get(path_of(deployment["app"]))["paused"])


def _say_that_it_waits(deployment: Answer, *, as_json: bool) -> None:
    if not as_json:
        app = deployment["app"]
        click.echo(clean(f"{app} is paused: replay {deployment['id']} waits until: hookdeploy resume {app}"))


def _follow(api: Api, ends: list[Answer], place: int, *, as_json: bool) -> None:
    """Follow the one at this place of ``ends``, and put there how it was at the last look."""
    from rich.console import Console

    say = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=as_json)
    progress = Progress(say, lambda deployment: usual_of(api, deployment))
    try:
        ends[place] = follow(api, ends[place], progress.tell)
    except (KeyboardInterrupt, NotRunning, ApiError):
        progress.end_line()
        ends[place] = progress.newest or ends[place]
        raise
    if not as_json:
        _say_end(api, ends[place])


def _say_end(api: Api, deployment: Answer) -> None:
    if deployment["outcome"] in GOOD_ENDS:
        click.echo(good_end(deployment))
    else:
        click.echo(bad_end(deployment, api.get(path_of(deployment["app"])), api.state), err=True)
        click.echo(clean(f"What to do: hookdeploy why {deployment['id']}"), err=True)


def _leave(ends: Sequence[Answer], in_json: Callable[[Sequence[Answer]], object], *, as_json: bool) -> NoReturn:
    """Somebody has seen enough. That is no success: nobody knows yet."""
    if as_json:
        click.echo(json.dumps(in_json(ends)))
    for each in ends:
        if each["outcome"] is None:
            click.echo(clean(f"The deployment goes on. This ends it: hookdeploy cancel {each['id']}"), err=True)
    raise click.exceptions.Exit(FAILED)


@click.command()
@click.argument("id")
@server_options
def cancel(*, id: str, config: Path | None, state: Path | None, as_json: bool) -> None:
    """End the deployment ID, and all that it has started; what serves goes on serving.

    Exits with 1 if it has ended already.
    """
    with running_server(config, state, as_json=as_json) as api:
        deployment = api.post(f"/deployments/{quote(id, safe='')}/cancel")
        when = " when its migration has ended" if deployment["phase"] == "migrating" else ""
        _show(deployment, f"{deployment['app']}: deployment {deployment['id']} is cancelled{when}", as_json=as_json)


# --- what holds an app back


@click.command()
@app_argument
@server_options
def pin(**given: Any) -> None:
    """Keep APP at its current release: what is pushed is written down and not deployed."""
    _steer(
        "pin",
        lambda app: f"{app['name']} is pinned {_at(app)}. Pushes are not deployed; what you deploy yourself is.",
        **given,
    )


@click.command()
@app_argument
@server_options
def unpin(**given: Any) -> None:
    """Deploy what is pushed to APP again: with the next push, or at the next look at its remote."""
    _steer("unpin", _unpinned, **given)


@click.command()
@app_argument
@server_options
def pause(**given: Any) -> None:
    """Let what is pushed to APP wait until it is resumed."""
    _steer("pause", lambda app: f"{app['name']} is paused {_at(app)}. Pushes wait until it is resumed.", **given)


@click.command()
@app_argument
@server_options
def resume(**given: Any) -> None:
    """End a pause of APP: the newest of what waits is deployed."""
    _steer("resume", _resumed, **given)


def _steer(
    how: str,
    in_words: Callable[[Answer], str],
    *,
    app: str | None,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    with running_server(config, state, as_json=as_json) as api:
        steered = api.post(f"{app_path(api, app)}/{how}")
        _show(steered, in_words(steered), as_json=as_json)


def _at(app: Answer) -> str:
    return f"at {commit(app)}" if app["revision"] else "before its first release"


def _unpinned(app: Answer) -> str:
    look = ", or the tip at the next look at the remote" if app["poll"] else ""
    now = f"this deploys the tip now: hookdeploy deploy {app['name']}"
    return f"{app['name']} is not pinned. The next push is deployed{look}; {now}"


def _resumed(app: Answer) -> str:
    coming = app["waiting"] or app["running"]
    what = f"deployment {coming} is on its way" if coming else "nothing waits"
    pinned = "; it is pinned still" if app["pinned"] else ""
    return f"{app['name']} is not paused: {what}{pinned}."


def _show(answer: Answer, in_words: str, *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else clean(in_words))
