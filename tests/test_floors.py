"""The house has floors: a file imports from lower ones and from its own, and the two lowest know no reactor."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "twisted_hook"
GATE = PACKAGE / "gate.py"
KEEPER = PACKAGE / "keeper.py"
"""A file apart: gunicorn executes it in the app's own interpreter, where nothing of ours is to be found."""

FLOORS = (
    ("words", ("model", "boundaries")),
    (
        "rules",
        (
            "once",
            "forges",
            "advice",
            "changes",
            "timings",
            "durations",
            "sessions",
            "githubrest",
            "hooks",
            "config",
            "exposure",
            "configschema",
            "configrules",
            "configvalues",
            "addresses",
            "proxyheader",
            "commands",
            "unit",
            "refs",
            "supervision",
            "redaction",
            "peers",
            "rates",
        ),
    ),
    (
        "tools",
        (
            "accounts",
            "apitoken",
            "process",
            "repository",
            "served",
            "copies",
            "halftree",
            "underway",
            "clone",
            "mirror",
            "shared",
            "spare",
            "releases",
            "environments",
            "sockets",
            "given",
            "notify",
            "journald",
            "logformat",
            "certificates",
            "leftovers",
            "keeping",
            "serverrecords",
            "questions",
            "healthprobe",
            "polling",
            "rounds",
            "serverlog",
            "generation",
            "candidate",
            "adoption",
            "appserver",
            "journal",
            "deploymentlog",
            "configfile",
            "localgit",
            "survey",
            "outward",
        ),
    ),
    (
        "work",
        (
            "announced",
            "builders",
            "deploy",
            "lanes",
            "reconcile",
            "redelivery",
            "story",
        ),
    ),
    (
        "doors",
        (
            "api",
            "metrics",
            "exposition",
            "cli",
            "console",
            "dashboard",
            "door",
            "entrance",
            "intake",
            "site",
            "streams",
        ),
    ),
    ("wiring", ("apps", "ports", "tap", "loading", "twisted.plugins.hookdeploy_plugin")),
)
FLOOR = {module: number for number, (_, modules) in enumerate(FLOORS, 1) for module in modules}
FLOOR["__init__"] = 0


def sources() -> dict[str, str]:
    """The text of every module of ours, but for the two programs apart, by its name without the package's."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
        if path not in (GATE, KEEPER)
    }
    found["twisted.plugins.hookdeploy_plugin"] = (ROOT / "twisted/plugins/hookdeploy_plugin.py").read_text()
    return found


def floor_of(module: str) -> int | None:
    """The floor on which a module is listed, itself or with the package in which it is."""
    names = module.split(".")
    listed = (FLOOR.get(".".join(names[:length])) for length in range(len(names), 0, -1))
    return next((floor for floor in listed if floor is not None), None)


@cache
def imported(source: str) -> frozenset[str]:
    """The full name of everything that is imported anywhere in a text, be it a module or a name in one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import that is relative"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def ours(name: str, known: set[str]) -> str | None:
    """Which of our modules an imported name means."""
    names = name.split(".")
    if names[0] != "twisted_hook":
        return None
    candidates = (".".join(names[1:length]) for length in range(len(names), 1, -1))
    return next((one for one in candidates if one in known or f"{one}.__init__" in known), "__init__")


def upward(module: str, source: str, known: set[str]) -> list[str]:
    """The modules on higher floors that a module imports."""
    floor = floor_of(module)
    assert floor is not None, module
    targets = {target for name in imported(source) if (target := ours(name, known)) is not None}
    return sorted(target for target in targets if (floor_of(target) or 0) > floor)


class TheHouse(SynchronousTestCase):
    """What the imports say."""

    def setUp(self) -> None:
        self.sources = sources()
        self.known = set(self.sources)

    def test_every_module_has_a_floor(self) -> None:
        homeless = [module for module in self.sources if floor_of(module) is None]
        self.assertEqual(homeless, [], "list these in FLOORS")

    def test_every_listed_module_is_there(self) -> None:
        packages = {module.rpartition(".")[0] for module in self.known}
        self.assertEqual([module for module in FLOOR if module not in self.known | packages], [])

    def test_no_import_points_upwards(self) -> None:
        found = {module: upward(module, source, self.known) for module, source in self.sources.items()}
        self.assertEqual({module: targets for module, targets in found.items() if targets}, {})

    def test_words_import_nothing_of_ours_but_words(self) -> None:
        for module in ("model", "boundaries", "__init__"):
            targets = {ours(name, self.known) for name in imported(self.sources[module])} - {None}
            self.assertLessEqual(targets, {"model"})

    def test_an_import_that_points_upwards_would_be_found(self) -> None:
        for source in (
            "import twisted_hook.lanes",
            "from twisted_hook import lanes",
            "from twisted_hook.lanes import Lane",
            "def late():\n    from twisted_hook.lanes import Lane",
        ):
            self.assertEqual(upward("process", source, self.known), ["lanes"])
        self.assertEqual(upward("model", "from twisted_hook import forges", self.known), ["forges"])
        self.assertEqual(upward("deploy", "from twisted_hook.lanes import Lane", self.known), [])

    def test_a_module_without_a_floor_would_be_found(self) -> None:
        self.assertIsNone(floor_of("novelty"))
        self.assertEqual(floor_of("forges.novelty"), 2)

    def test_only_the_wiring_imports_the_global_reactor(self) -> None:
        found = [module for module, text in self.sources.items() if "twisted.internet.reactor" in imported(text)]
        self.assertEqual(found, ["tap"])

    def test_the_two_lowest_floors_load_no_reactor(self) -> None:
        low = [module for module in self.known if (floor_of(module) or 0) in {1, 2}]
        names = [f"twisted_hook.{module.removesuffix('.__init__')}" for module in sorted(low)]
        self.assertIn("twisted_hook.forges.github", names)
        script = f"import sys, {', '.join(names)}; sys.exit('twisted.internet.reactor' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)


class TheStart(SynchronousTestCase):
    """hookdeploy is to be ready soon after a crash."""

    def test_it_loads_nothing_that_few_need_and_collects_garbage_from_then_on(self) -> None:
        spared = {"gidgethub", "treq", "prometheus_client", "jinja2"}
        script = "import gc, sys, twisted_hook.loading; print(gc.isenabled(), *sys.modules)"
        enabled, *loaded = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True).split()
        self.assertEqual((enabled, spared & {*loaded}), ("True", set()))


class TheGate(SynchronousTestCase):
    """It is executed in the app's interpreter."""

    def test_it_imports_the_standard_library_and_nothing_else(self) -> None:
        foreign = {name.partition(".")[0] for name in imported(GATE.read_text())} - sys.stdlib_module_names
        self.assertEqual(foreign, set())

    def test_it_is_written_in_python_3_8(self) -> None:
        ast.parse(GATE.read_text(), feature_version=(3, 8))


class TheKeeper(SynchronousTestCase):
    """It is a program of its own, so that it stays small."""

    def test_it_imports_the_standard_library_and_nothing_else(self) -> None:
        foreign = {name.partition(".")[0] for name in imported(KEEPER.read_text())} - sys.stdlib_module_names
        self.assertEqual(foreign, set())
