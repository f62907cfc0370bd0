"""Servers other than gunicorn with a WSGI app, by the installed program: tried out in private, then swapped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed import RELEASE, Hookdeploy, Origin, put_away
from tests.proctable import within
from tests.waiting import until

WSGI = 'wsgi = "wsgi:application"\n'
COMMAND = f'command = ["{sys.executable}", "-m", "uvicorn", "--fd", "{{fd}}", "app:app"]\n'
ASGI = 'wsgi = "app:app"\ngunicorn = ["--worker-class", "asgi"]\n'


NO_DATABASE = 'return await send({"type": "lifespan.startup.failed", "message": "no database"})'


def app(page: str, *, startup: str = "pass") -> dict[str, str]:
    """The files of an ASGI app whose page is this text; ``startup`` is done before it serves."""
    return {
        "app.py": f"""
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {startup}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    status = 500 if {page!r} == "broken" else 200
    await send({{"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}})
    await send({{"type": "http.response.body", "body": {page!r}.encode()}})
"""
    }


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    made = Origin(tmp_path)
    made.push(app("one"))
    return made


@pytest.fixture(params=[COMMAND, ASGI], ids=["uvicorn by its own command", "gunicorn with asgi workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    config = RELEASE.replace(WSGI, request.param + 'health = "/"\n')
    if request.param == COMMAND:
        config = config.replace("workers = 1\n", "")
    with put_away(Hookdeploy(tmp_path, config=config)) as hookdeploy:
        hookdeploy.start()
        hookdeploy.first()
        yield hookdeploy


def test_it_is_swapped_and_what_is_broken_never_meets_a_visitor(server: Hookdeploy, origin: Origin) -> None:
    """P81."""
    assert server.page() == "one"
    good = server.ended(server.announce(origin.push(app("two"))))
    assert good["outcome"] == "deployed", good["reason"]
    server.wait_for_page("two")
    for broken, reason in (
        (app("three", startup=NO_DATABASE), "no database"),
        (app("broken"), "/ answered 500"),
        ({"app.py": "import nothing_of_this_name"}, "nothing_of_this_name"),
    ):
        done = server.ended(server.announce(origin.push(broken)))
        assert done["outcome"] == "failed"
        assert reason in done["reason"]
        assert server.page() == "two"
    until(lambda: len(generations(server)) == 1, "one generation alone")


def generations(hookdeploy: Hookdeploy) -> set[str]:
    """The releases in which somebody works."""
    return {path.name for path in within(hookdeploy.directory).values() if path.parent.name == "releases"}
