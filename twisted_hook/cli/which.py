"""Which deployment or delivery a person means: by its id, by the name of an app, or the newest."""

from __future__ import annotations

from urllib.parse import quote

import click

from twisted_hook.cli.client import Api, ApiError
from twisted_hook.cli.follow import Answer
from twisted_hook.redaction import clean


def deployment_meant(api: Api, name: str | None) -> Answer:
    """The deployment with this id, the newest one of the app with this name, or the newest of all."""
    found = None if name is None else by_id(api, "deployments", name)
    if found is not None:
        return found
    if name is not None and name not in {app["name"] for app in api.get("/apps")}:
        raise click.UsageError(clean(f"there is neither a deployment nor an app {name}; see hookdeploy history"))
    newest = newest_deployment(api, name)
    if newest is None:
        raise ApiError(f"{name or 'nothing'} was not deployed yet" if name else "nothing was deployed yet")
    return newest


def newest_deployment(api: Api, app: str | None) -> Answer | None:
    """The newest deployment, of this app if one is named."""
    of_app = {} if app is None else {"app": app}
    found: list[Answer] = api.get("/deployments", limit=1, **of_app)
    return found[0] if found else None


def by_id(api: Api, kind: str, id: str) -> Answer | None:
    """What the API has under this id among its ``kind``; None if it has not."""
    try:
        found: Answer = api.get(f"/{kind}/{quote(id, safe='')}")
    except ApiError as error:
        if error.status != 404:
            raise
        return None
    return found
