"""What hookdeploy.toml must be beyond its shape: rules about two keys at once.

Pure. Rules look at the file as it is written, and not at the models: so they speak also when something else is wrong.
"""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Callable, Iterator, Mapping

from twisted_hook import addresses, configvalues
from twisted_hook.configschema import Fault, key_path

CLAIMED = (
    "whoever connects there may claim to come from any address: say whose word counts, "
    'e.g. trusted_proxies = ["127.0.0.1/32"]'
)


def table_in(raw: object, key: str) -> Mapping[str, object]:
    """A table inside a table; empty where there is none or something else."""
    found = raw.get(key) if isinstance(raw, dict) else None
    return found if isinstance(found, dict) else {}


def tables(raw: object, key: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    return ((name, table) for name, table in table_in(raw, key).items() if isinstance(table, dict))


def broken_rules(raw: Mapping[str, object]) -> Iterator[Fault]:
    """Every breach of a rule in the file as it is written."""
    return (fault for rule in _RULES for fault in rule(raw))


def _hook_paths_differ(raw: Mapping[str, object]) -> Iterator[Fault]:
    hooks = dict(tables(raw, "hooks"))
    paths = [(key_path(("hooks", name)), table.get("path", f"/hooks/{name}")) for name, table in hooks.items()]
    for app, table in tables(raw, "apps"):
        if "secret" in table and app in hooks:
            yield Fault(
                key_path(("apps", app, "secret")),
                f"would make a hook named {app}, and there is [{key_path(('hooks', app))}] already: rename one",
            )
        elif "secret" in table:
            paths.append((key_path(("apps", app, "secret")), f"/hooks/{app}"))
    first: dict[object, str] = {}
    for where, path in paths:
        if isinstance(path, str) and first.setdefault(path, where) != where:
            key = where if where.startswith("apps.") else f"{where}.path"
            yield Fault(key, f"{configvalues.shown(path)} is the path of {first[path]} already")


def _apps_are_reached(raw: Mapping[str, object]) -> Iterator[Fault]:
    hooks = table_in(raw, "hooks")
    for app, table in tables(raw, "apps"):
        hook = table.get("hook")
        if "hook" in table and "secret" in table:
            yield Fault(key_path(("apps", app, "secret")), "an app has a hook or a secret of its own: remove one")
        elif "hook" not in table and "secret" not in table:
            yield Fault(
                key_path(("apps", app)),
                'has neither hook nor secret, so no push could reach it: add hook = "…" or secret = { file = "…" }',
            )
        if isinstance(hook, str) and hook not in hooks:
            near = difflib.get_close_matches(hook, hooks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Fault(key_path(("apps", app, "hook")), f"there is no [{key_path(('hooks', hook))}]{hint}")


def _modes_have_what_they_need(raw: Mapping[str, object]) -> Iterator[Fault]:
    for app, table in tables(raw, "apps"):
        mode = table.get("mode", "release")
        if mode == "in-place" and "path" not in table:
            yield Fault(key_path(("apps", app, "path")), 'is missing: with mode = "in-place" it names the clone')
        if mode == "release" and "repository" not in table:
            yield Fault(
                key_path(("apps", app, "repository")),
                'is missing: what to fetch from, e.g. repository = "https://github.com/acme/blog.git"',
            )
        for key in ("path", "update"):
            if mode == "release" and key in table:
                yield Fault(key_path(("apps", app, key)), 'is for mode = "in-place" only')
        if mode == "in-place" and table.get("shared"):
            yield Fault(key_path(("apps", app, "shared")), 'is for mode = "release" only: in place nothing is replaced')
        if mode == "in-place" and "user" in table:
            # The account could have git, which works there as root, run what it likes: .git/config names programs.
            yield Fault(
                key_path(("apps", app, "user")),
                'is for mode = "release" only: git works in the clone as we do; run hookdeploy itself as that user',
            )


def _tags_are_for_releases(raw: Mapping[str, object]) -> Iterator[Fault]:
    for app, table in tables(raw, "apps"):
        if "tag" not in table:
            continue
        if "branch" in table:
            yield Fault(key_path(("apps", app, "tag")), "an app follows a branch or tags: remove one")
        if table.get("mode") == "in-place":
            yield Fault(key_path(("apps", app, "tag")), 'is for mode = "release" only: a clone is on a branch')


def _only_github_is_asked(raw: Mapping[str, object]) -> Iterator[Fault]:
    for hook, table in tables(raw, "hooks"):
        for key in ("token", "api"):
            if key in table and table.get("forge", "github") != "github":
                yield Fault(key_path(("hooks", hook, key)), 'is for forge = "github" only')


def _only_github_publishes_where_it_is(raw: Mapping[str, object]) -> Iterator[Fault]:
    for hook, table in tables(raw, "hooks"):
        senders = table.get("only_from")
        for place, sender in enumerate(senders if isinstance(senders, list) else ()):
            if sender == configvalues.GITHUB and table.get("forge", "github") != "github":
                where = key_path(("hooks", hook, "only_from", place))
                yield Fault(where, f'"{sender}" is for forge = "github" only: name the networks')


def _claims_of_origin_are_judged(raw: Mapping[str, object]) -> Iterator[Fault]:
    if table_in(raw, "server").get("trusted_proxies"):
        return
    for where, endpoint in _endpoints(raw):
        if addresses.is_claimed(endpoint):
            yield Fault(where, CLAIMED)


def _endpoints(raw: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Where we listen ourselves, each endpoint behind its key path."""
    usual: Mapping[str, object] = {"server": ["tcp:8000"], "dashboard": []}
    for section in ("server", "dashboard"):
        listen = table_in(raw, section).get("listen", usual[section])
        for place, endpoint in enumerate(listen if isinstance(listen, list) else ()):
            if isinstance(endpoint, str):
                yield key_path((section, "listen", place)), endpoint


def _servers_are_of_one_kind(raw: Mapping[str, object]) -> Iterator[Fault]:
    for app, table in tables(raw, "apps"):
        if "command" not in table:
            continue
        if "wsgi" in table:
            yield Fault(key_path(("apps", app, "wsgi")), "an app has wsgi or a command: remove one")
        for key in ("workers", "gunicorn"):
            if key in table:
                yield Fault(key_path(("apps", app, key)), "is for gunicorn only, and command serves here: remove one")
        if "bind" not in table:
            yield Fault(
                key_path(("apps", app, "bind")),
                'is missing: the socket that command is to inherit, e.g. bind = "127.0.0.1:8080"',
            )


def _shared_paths_lie_apart(raw: Mapping[str, object]) -> Iterator[Fault]:
    for app, table in tables(raw, "apps"):
        shared = table.get("shared")
        written = shared if isinstance(shared, list) else []
        paths = [path.rstrip("/") if isinstance(path, str) else "" for path in written]
        for place, path in enumerate(paths):
            problems = (_overlap(path, other) for other in paths[:place])
            if problem := next(filter(None, problems), None):
                yield Fault(key_path(("apps", app, "shared", place)), problem)


def _overlap(path: str, other: str) -> str | None:
    """How two paths of a tree are in each other's way."""
    if path == other:
        return f"{configvalues.shown(path)} is named twice"
    if path.startswith(f"{other}/"):
        return f"{configvalues.shown(path)} lies inside {configvalues.shown(other)}, which is shared already"
    if other.startswith(f"{path}/"):
        return f"{configvalues.shown(other)}, which is shared already, lies inside {configvalues.shown(path)}"
    return None


def _clones_differ(raw: Mapping[str, object]) -> Iterator[Fault]:
    """Two that deploy into one clone would put each other back."""
    first: dict[str, str] = {}
    for app, table in tables(raw, "apps"):
        path = table.get("path")
        if isinstance(path, str) and table.get("mode") == "in-place":
            other = first.setdefault(os.path.normpath(path), app)
            if other != app:
                yield Fault(key_path(("apps", app, "path")), f"is the clone of {key_path(('apps', other))} already")


def _sockets_differ(raw: Mapping[str, object]) -> Iterator[Fault]:
    taken: list[tuple[str, str, addresses.Address | None]] = []
    for where, endpoint in _endpoints(raw):
        address = addresses.endpoint_address(endpoint)
        other = next((each for each, text, at in taken if _collide(endpoint, address, text, at)), None)
        if other is not None and where.startswith("dashboard.") and not other.startswith("dashboard."):
            yield Fault(where, f"{configvalues.shown(endpoint)} is taken by {other} already")
        taken.append((where, endpoint, address))
    for app, table in tables(raw, "apps"):
        bind = table.get("bind", "127.0.0.1:8080" if "wsgi" in table else None)
        if table.keys().isdisjoint(("wsgi", "command")) or not isinstance(bind, str):
            continue
        where, address = key_path(("apps", app, "bind")), addresses.bound_address(bind)
        for other, text, other_address in taken:
            if _collide(bind, address, text, other_address):
                yield Fault(where, f"{configvalues.shown(bind)} is taken by {other} already")
        taken.append((where, bind, address))


def _collide(one: str, at: addresses.Address | None, other: str, other_at: addresses.Address | None) -> bool:
    """Whether two sockets are one, by their text where that says no address."""
    return addresses.collide(at, other_at) if at and other_at else at is None and one == other


_RULES: tuple[Callable[[Mapping[str, object]], Iterator[Fault]], ...] = (
    _hook_paths_differ,
    _apps_are_reached,
    _modes_have_what_they_need,
    _tags_are_for_releases,
    _only_github_is_asked,
    _only_github_publishes_where_it_is,
    _claims_of_origin_are_judged,
    _servers_are_of_one_kind,
    _shared_paths_lie_apart,
    _clones_differ,
    _sockets_differ,
)
