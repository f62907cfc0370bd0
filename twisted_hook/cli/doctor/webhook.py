"""The webhook at the forge: whether it delivers to us, in a form that we take, and how its last deliveries went.

Asks GitHub where the hook has a token; without one it says what a person should look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.git import remote_of
from twisted_hook.cli.doctor.patient import Patient
from twisted_hook.cli.forge import GitHubRepository, host_of
from twisted_hook.cli.forgepages import PAGES
from twisted_hook.config import AppConfig, HookConfig
from twisted_hook.githubrest import api_of
from twisted_hook.localgit import NotUsable
from twisted_hook.model import ForgeFailed
from twisted_hook.outward.redeliveries import leads_to
from twisted_hook.redaction import clean

_LOOKED_AT = 10
"""Deliveries: of older ones, hookdeploy has long asked for what failed."""


def webhooks(patient: Patient, hook: HookConfig, app: AppConfig) -> Iterator[Finding]:
    """The webhook by which an app's pushes come."""
    name = f"webhook of {app.name}"
    public_url = patient.config.server.public_url if patient.config else None
    address = f"{public_url or 'https://<this server>'}{hook.path}"
    if hook.forge != "github":
        pages = PAGES[hook.forge]
        yield skipped(
            name,
            f"only GitHub can be asked for it, and this one is made at {pages.name}",
            f"look there, {pages.editing}: it should deliver pushes to {address}, and show no failures",
        )
        return
    token = patient.tokens.get(hook.name)
    try:
        remote = remote_of(patient, app)
    except (NotUsable, OSError) as error:
        yield skipped(name, str(error))
        return
    repository = app.names[0] if app.names else ""
    host = host_of(remote.url)
    if token is None or repository.count("/") != 1 or not (host or hook.api):
        why = "without a token GitHub cannot be asked" if token is None else "its repository is not at GitHub"
        yield skipped(name, why, _by_hand(address))
        return
    github = GitHubRepository(repository, api=hook.api or api_of(host), token=token)
    try:
        found = [each for each in github.webhooks() if leads_to(_setting(each, "url"), hook.path, public_url)]
        deliveries = github.deliveries(int(found[0]["id"])) if len(found) == 1 else []
        yield from judge(name, found, deliveries, page=f"https://{host}/{repository}/settings/hooks", address=address)
    except ForgeFailed as failed:
        yield warning(name, str(failed), f"a new token, into {hook.token.words if hook.token else 'its file'}")
    except (LookupError, ValueError, TypeError):
        yield warning(name, "GitHub's answer cannot be understood", _by_hand(address))
    finally:
        github.close()


def _by_hand(address: str) -> str:
    return f"look at the forge: it should deliver pushes to {address}, as application/json, and show no red ones"


def _setting(webhook: Mapping[str, Any], name: str) -> str:
    config = webhook.get("config")
    return str(config.get(name, "")) if isinstance(config, dict) else ""


def judge(
    name: str, found: Sequence[Mapping[str, Any]], deliveries: Sequence[Mapping[str, Any]], *, page: str, address: str
) -> Iterator[Finding]:
    """``found`` are the webhooks that lead to us, ``deliveries`` the last of the only one, the newest first."""
    if not found:
        yield problem(name, f"GitHub delivers nothing to {address}", f"add it at {page}/new, or: hookdeploy init")
        return
    if len(found) > 1:
        yield warning(name, f"{len(found)} webhooks deliver to {address}", f"delete all but one at {page}")
        return
    webhook, at = found[0], f"{page}/{found[0]['id']}"
    wrong = list(_wrong_settings(name, webhook, at))
    yield from wrong
    yield from _wrong_deliveries(name, deliveries, at)
    if not wrong and not deliveries:
        yield ok(name, f"it delivers to {address}; it has not delivered anything yet")
    elif not wrong and _was_taken(deliveries[0]):
        yield ok(name, f"it delivers to {address}, and its last delivery was taken")


def _wrong_settings(name: str, webhook: Mapping[str, Any], at: str) -> Iterator[Finding]:
    if not webhook.get("active"):
        yield problem(name, "it is switched off", f"tick Active at {at}")
    if _setting(webhook, "content_type") != "json":
        yield problem(name, "it does not deliver JSON, which is refused with 415", f"choose application/json at {at}")
    events = webhook.get("events") or []
    if "push" not in events and "*" not in events:
        yield problem(name, "it does not deliver pushes", f"choose the push event at {at}")
    if _setting(webhook, "insecure_ssl") == "1":
        yield warning(name, "GitHub does not verify our certificate", f"enable SSL verification at {at}")
    if not _setting(webhook, "secret"):
        yield problem(name, "it has no secret, so each of its deliveries is refused with 401", f"paste it at {at}")


def _wrong_deliveries(name: str, deliveries: Sequence[Mapping[str, Any]], at: str) -> Iterator[Finding]:
    if not deliveries or _was_taken(deliveries[0]):
        return
    failed = 0
    for delivery in deliveries[:_LOOKED_AT]:
        if _was_taken(delivery):
            break
        failed += 1
    last = deliveries[0]
    words = f"the last {failed} deliveries failed" if failed > 1 else "the last delivery failed"
    remedy = {
        401: "the secret differs: paste that of the configuration at {at}",
        403: "apps.….names must have the name of the repository; see hookdeploy deliveries",
        404: "the path differs: mend the payload URL at {at}",
        415: "choose application/json at {at}",
    }.get(last.get("status_code") or 0, "see Recent Deliveries at {at}?tab=deliveries, and the firewall").format(at=at)
    yield problem(name, clean(f"{words}: {last.get('status')} ({last.get('status_code')})")[:200], remedy)


def _was_taken(delivery: Mapping[str, Any]) -> bool:
    code = delivery.get("status_code")
    return delivery.get("status") == "OK" or (isinstance(code, int) and 200 <= code < 300)
