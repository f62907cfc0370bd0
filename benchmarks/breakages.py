"""Releases that are broken, each in a way of its own: what such a commit changes in a project of the benchmarks.

They are for projects that build by ``sh build.sh`` and are asked for ``/healthz``.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import rig

GOOD: Mapping[str, str] = {
    "wsgi.py": rig.WSGI,
    "build.sh": "exit 0\n",
    "gunicorn.conf.py": "# nothing\n",
}
"""What every commit has, so that a good one puts right what a broken one did."""
_ANSWER_500 = """start_response("500 Internal Server Error", [("Content-Length", str(len(PAGE)))]); return [PAGE]"""


def _asked(condition: str, what: str) -> Mapping[str, str]:
    """An app that boots, and does this when it is asked for such a path."""
    return {
        "wsgi.py": f"""{rig.WSGI}
import os
good = application


def application(environ, start_response):
    if {condition}:
        {what}
    return good(environ, start_response)
"""
    }


def _at_import(what: str) -> Mapping[str, str]:
    return {"wsgi.py": f"{rig.WSGI}\nimport os, threading\n{what}\n"}


_HEALTH = 'environ["PATH_INFO"] == "/healthz"'
_PAGES = 'environ["PATH_INFO"] != "/healthz"'

BEFORE: Mapping[str, Mapping[str, str]] = {
    "import error": _at_import('raise RuntimeError("no settings found")'),
    "missing name": {"wsgi.py": rig.WSGI.replace("def application", "def app")},
    "hangs at boot": _at_import("time.sleep(1000)"),
    "health 500": _asked(_HEALTH, _ANSWER_500),
    "dies at health": _asked(_HEALTH, "os._exit(7)"),
    "exits at import": _at_import("os._exit(7)"),
    "build step exits 1": {"build.sh": "exit 1\n"},
    "second worker fails": _at_import('os.mkdir("there-is-one-already")'),
    "health hangs": _asked(_HEALTH, "time.sleep(1000)"),
    "health raises": _asked(_HEALTH, 'raise LookupError("no database")'),
    "syntax error": {"wsgi.py": "def application(:\n"},
    "gunicorn.conf.py raises": {"gunicorn.conf.py": "raise LookupError\n"},
}
"""What shows before anybody could be answered by it."""
ON_PROBATION: Mapping[str, Mapping[str, str]] = {
    "pages answer 500": _asked(_PAGES, _ANSWER_500),
    "dies at its first page": _asked(_PAGES, "os._exit(7)"),
    "dies after 0.5 s": _at_import("threading.Timer(0.5, os._exit, (7,)).start()"),
}
"""What shows only when it is asked for pages: no check before that can find it."""
