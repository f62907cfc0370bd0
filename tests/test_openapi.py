"""The description of the API tells of every call and no other, and the API answers as it says."""
# Neither schemathesis nor PyYAML has types that mypy finds.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.fakes import MemoryJournal
from tests.steered import SteeredApp, api_of, deliver
from tests.wire import listening
from twisted_hook.api import DESCRIPTION, LIMITS, Api
from twisted_hook.model import Step, Trigger
from twisted_hook.site import GuardedSite

WRITTEN = yaml.safe_load(DESCRIPTION.read_text())
METHODS = {"get", "post", "put", "delete", "patch"}


def _served() -> set[tuple[str, str]]:
    rules = (rule for rule in Api.app.url_map.iter_rules() if rule.methods)
    return {
        (re.sub(r"<(?:[^>]*:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_every_call_is_described_and_no_other() -> None:
    described = {(path, method) for path, item in WRITTEN["paths"].items() for method in METHODS & item.keys()}
    assert described == _served()


async def _site(state: Path) -> tuple[GuardedSite, dict[str, str]]:
    """An API that has one of everything, and the ids of what it has."""
    journal = MemoryJournal()
    app = SteeredApp(journal)
    made = await journal.enqueue("web", Trigger.MANUAL)
    await journal.begin(made.id, 1.0)
    await journal.add_step(made.id, Step("make", "make", 1.0, 2.5, "exit 1"))
    delivery = await deliver(journal, "guid", ("acme/web", "refs/heads/main", "a" * 40), apps=["web"])
    (state / "logs").mkdir()
    api = api_of(journal, [app], state)
    site = GuardedSite(api.app.resource(), screen=Api.screen, reactor=reactor, limits=LIMITS)
    return site, {"apps": "web", "deployments": made.id, "deliveries": delivery}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
async def test_the_api_answers_as_it_is_described(tmp_path: Path, mode: schemathesis.GenerationMode) -> None:
    """With what is asked for as described, and with what is not; events have no end, and tests of their own."""
    site, ids = await _site(tmp_path)
    async with listening(site) as port:
        await deferToThread(_ask_all, f"http://127.0.0.1:{port}", ids, mode)


def _ask_all(url: str, ids: Mapping[str, str], mode: schemathesis.GenerationMode) -> None:
    """Generated requests of every operation; raises for the first answer that is not as described."""
    schema = schemathesis.openapi.from_dict(WRITTEN)
    schema.config.generation.update(modes=list(schemathesis.GenerationMode))
    checks = CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )
    for found in schema.exclude(path_regex="events|/log").get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # every operation of ours can be read
        _ask(operation, mode, partial(_call, url, checks, ids))


def _call(url: str, checks: list[Any], ids: Mapping[str, str], case: Any, is_known: bool) -> None:
    for name in {"name", "id"} & set(case.path_parameters or {}) if is_known else ():
        case.path_parameters[name] = ids[case.operation.path.split("/")[3]]
    case.call_and_validate(base_url=url, checks=checks, timeout=60, headers={"Connection": "close"})


def _ask(operation: Any, mode: Any, call: Callable[[Any, bool], None]) -> None:
    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def ask(case: Any, is_known: bool) -> None:
        call(case, is_known)

    try:
        ask()
    except Unsatisfiable:  # there is nothing in it that could be asked for in another way
        assert mode is schemathesis.GenerationMode.NEGATIVE
