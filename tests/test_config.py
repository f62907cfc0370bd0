"""The configuration as text: what it means, and that all that is wrong with it is said at once, without secrets."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

from gunicorn.config import Config as GunicornConfig  # type: ignore[import-untyped]  # has no types
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook import addresses, configvalues
from twisted_hook.config import (
    AppConfig,
    Config,
    ConfigError,
    DashboardConfig,
    Fault,
    ServerConfig,
    StepConfig,
    from_environment,
    parse,
    read,
    read_environment,
)
from twisted_hook.configschema import AppTable, DashboardTable, HookTable, ServerTable

BASE = Path("/etc/hookdeploy")

SMALLEST = """
state = "/var/lib/hookdeploy"
[hooks.github]
secrets = [{ file = "hook.secret" }]
[apps.blog]
hook = "github"
repository = "https://github.com/acme/blog.git"
"""

# As the interface shows it, with everything that it promises.
EVERYTHING = """
state = "/var/lib/hookdeploy"
[server]
listen = ["tcp:8000"]
public_url = "https://deploy.example.com"
trusted_proxies = ["127.0.0.1/32"]
max_body = 26214400
min_free = 104857600
max_builds = 4
history = "30d"
history_rows = 5000
[dashboard]
listen = ["tcp:8001:interface=127.0.0.1"]
hosts = ["Deploy.example.com"]
[hooks.github]
forge = "github"
secrets = [{ file = "hook.secret" }, { env = "OLD_SECRET" }]
allow_sha1 = false
token = { file = "github.token" }
api = "https://github.example.com/api/v3"
[apps.blog]
hook = "github"
repository = "https://github.com/acme/blog.git"
names = ["acme/blog"]
branch = "main"
paths = ["services/blog/**"]
poll = "5m"
mode = "release"
build = ["uv sync --frozen"]
migrate = ["python manage.py migrate"]
wsgi = "wsgi:application"
bind = "0.0.0.0:8080"
workers = 2
gunicorn = ["--threads", "4"]
env = { DJANGO_SETTINGS_MODULE = "blog.settings" }
env_file = "blog.env"
health = "/healthz"
health_timeout = "30s"
probation = "5s"
probation_deaths = 1
probation_errors = 3
drain = "30s"
keep = 5
step_timeout = "15m"
shared = ["media", "db.sqlite3"]
user = "blog"
nice = 10
"""

HOOK_TOKEN = "hooks.github.token"
"""The key path of a token."""
COMMAND = 'command = ["uvicorn", "--fd", "{fd}", "app:app"]\nbind = "0.0.0.0:8080"\n'


def faults_of(text: str) -> dict[str, str]:
    """Message by path; the test fails if one path has two faults."""
    found = read(text, BASE).faults
    faults = {fault.path: fault.message for fault in found}
    assert faults, text
    assert len(faults) == len(found), found
    return faults


def with_app(line: str) -> str:
    return f"{SMALLEST}{line}\n"


def with_hook(line: str) -> str:
    return SMALLEST.replace("[apps.blog]", f"{line}\n[apps.blog]")


def with_server(line: str) -> str:
    return SMALLEST.replace("[hooks.github]", f"[server]\n{line}\n[hooks.github]")


class MeaningTests(SynchronousTestCase):
    """What a good file means."""

    def test_a_small_file_gets_the_defaults_of_the_interface(self) -> None:
        config = parse(SMALLEST, BASE)
        app = config.apps["blog"]
        self.assertEqual(config.state, Path("/var/lib/hookdeploy"))
        self.assertEqual(config.server.listen, ("tcp:8000",))
        self.assertEqual(config.server.max_body, 26_214_400)
        self.assertEqual(
            [(hook.name, hook.path, hook.forge) for hook in config.hooks], [("github", "/hooks/github", "github")]
        )
        self.assertEqual(config.hooks[0].secrets[0].file, BASE / "hook.secret")
        self.assertEqual((app.name, app.hook, app.names, app.branch), ("blog", "github", ("acme/blog",), None))
        self.assertEqual((app.mode, app.build, app.wsgi, app.bind), ("release", "auto", None, "127.0.0.1:8080"))
        self.assertEqual((app.workers, app.keep, app.health), (2, 5, None))
        self.assertEqual((app.health_timeout, app.drain, app.step_timeout), (30.0, 30.0, 900.0))
        self.assertEqual((app.probation, app.probation_deaths, app.probation_errors), (5.0, 1, 3))
        self.assertEqual((app.migrate, app.command, app.shared, app.user, app.nice), ((), (), (), None, 10))
        self.assertEqual((app.served, config.server.min_free), (False, None))
        self.assertEqual((app.poll, app.tag), (300.0, None))
        server = config.server
        self.assertEqual((server.max_builds, server.history, server.history_rows), (None, 90 * 86_400.0, 10_000))
        self.assertEqual((config.hooks[0].token, config.hooks[0].api), (None, None))

    def test_the_defaults_of_the_file_are_those_of_the_words(self) -> None:
        """Without a file there are no others; with one the tables have theirs."""
        told = ("names", "repository")  # what the file cannot leave to a default
        config = parse(SMALLEST, BASE)
        plain = AppConfig(name="blog", hook="github", **{key: getattr(config.apps["blog"], key) for key in told})
        self.assertEqual((config.apps["blog"], config.server), (plain, ServerConfig()))

    def test_everything_that_is_available_is_understood(self) -> None:
        config = parse(EVERYTHING, BASE)
        app = config.apps["blog"]
        self.assertEqual(config.server.public_url, "https://deploy.example.com")
        self.assertEqual(config.server.trusted_proxies, ("127.0.0.1/32",))
        self.assertEqual(app.paths, ("services/blog/**",))
        self.assertEqual([secret.env for secret in config.hooks[0].secrets], [None, "OLD_SECRET"])
        self.assertEqual(app.build, (StepConfig("uv sync --frozen", ("uv", "sync", "--frozen")),))
        self.assertEqual(app.env, {"DJANGO_SETTINGS_MODULE": "blog.settings"})
        self.assertEqual(app.env_file, BASE / "blog.env")
        self.assertEqual(app.gunicorn, ("--threads", "4"))
        self.assertEqual((app.health, app.wsgi, app.bind), ("/healthz", "wsgi:application", "0.0.0.0:8080"))
        migrate = StepConfig("python manage.py migrate", ("python", "manage.py", "migrate"))
        self.assertEqual((app.migrate, app.served), ((migrate,), True))
        self.assertEqual((app.shared, app.user, app.nice), (("media", "db.sqlite3"), "blog", 10))
        self.assertEqual(config.server.min_free, 104_857_600)
        server = config.server
        self.assertEqual((server.max_builds, server.history, server.history_rows), (4, 30 * 86_400.0, 5000))
        self.assertEqual((app.poll, app.tag), (300.0, None))
        [hook] = config.hooks
        self.assertEqual(hook.token and (hook.token.file, hook.token.where), (BASE / "github.token", HOOK_TOKEN))
        self.assertEqual(hook.api, "https://github.example.com/api/v3")

    def test_what_is_configured_of_probation_and_niceness_counts(self) -> None:
        lines = 'probation = "90s"\nprobation_deaths = 0\nprobation_errors = 50\nnice = 0\nuser = "www"\n'
        app = parse(with_app(f'{lines}shared = ["media/", "var/db.sqlite3"]'), BASE).apps["blog"]
        self.assertEqual((app.probation, app.probation_deaths, app.probation_errors), (90.0, 0, 50))
        self.assertEqual((app.nice, app.user, app.shared), (0, "www", ("media/", "var/db.sqlite3")))
        self.assertEqual(parse(with_app('probation = "0s"'), BASE).apps["blog"].probation, 0.0)
        self.assertEqual(parse(with_server("min_free = 0"), BASE).server.min_free, 0)

    def test_the_remote_is_looked_at_as_often_as_is_configured_or_never(self) -> None:
        for written, seconds in {"0": 0.0, "0s": 0.0, "0d": 0.0, "5s": 5.0, "5000ms": 5.0, "1h": 3600.0}.items():
            self.assertEqual(parse(with_app(f'poll = "{written}"'), BASE).apps["blog"].poll, seconds, written)

    def test_tags_may_be_deployed_instead_of_a_branch(self) -> None:
        for pattern in ("v*", "v[0-9]*", "release/*", "v?.?", "*", "v[!a]", "ü*", "v1.2.3"):
            app = parse(with_app(f'tag = "{pattern}"'), BASE).apps["blog"]
            self.assertEqual((app.tag, app.branch), (pattern, None))

    def test_a_hook_may_have_a_token_from_each_source_of_secrets(self) -> None:
        for written, key, value in (
            ('{ file = "t" }', "file", BASE / "t"),
            ('{ env = "T" }', "env", "T"),
            ('{ credential = "t" }', "credential", "t"),
        ):
            [hook] = parse(with_hook(f"token = {written}"), BASE).hooks
            self.assertEqual((getattr(hook.token, key), hook.token and hook.token.where), (value, HOOK_TOKEN))

    def test_the_api_of_a_forge_is_an_address_without_a_slash_at_the_end(self) -> None:
        for written in ("https://github.example.com/api/v3/", "http://127.1.2.3:81", "http://[::1]:1", "https://x"):
            [hook] = parse(with_hook(f'token = {{ env = "T" }}\napi = "{written}"'), BASE).hooks
            self.assertEqual(hook.api, written.rstrip("/"))

    def test_a_command_is_split_into_words_and_is_a_server(self) -> None:
        words = ("uvicorn", "--fd", "{fd}", "app:app")
        for written in ('["uvicorn", "--fd", "{fd}", "app:app"]', '"uvicorn --fd {fd} app:app"'):
            app = parse(with_app(f'command = {written}\nbind = "[::1]:80"'), BASE).apps["blog"]
            self.assertEqual((app.command, app.bind, app.wsgi, app.served), (words, "[::1]:80", None, True))
        inside = parse(with_app('command = ["x", "fd://{fd}", "$HOME", "{fd}"]\nbind = "unix:/x"'), BASE)
        self.assertEqual(inside.apps["blog"].command, ("x", "fd://{fd}", "$HOME", "{fd}"))

    def test_an_app_in_place_has_all_but_what_releases_are_for(self) -> None:
        """T35: in a clone that belongs to the app's account, git as root would run what its configuration names."""
        in_place = SMALLEST.replace('repository = "https://github.com/acme/blog.git"', 'mode = "in-place"\npath = "x"')
        app = parse(f'{in_place}migrate = ["m"]\nprobation = "1s"\n{COMMAND}', BASE).apps["blog"]
        self.assertEqual((len(app.migrate), app.probation, app.served), (1, 1.0, True))
        parse(f"{in_place}shared = []", BASE)
        found = faults_of(f'{in_place}shared = ["media"]\nuser = "www"')
        self.assertEqual(set(found), {"apps.blog.shared", "apps.blog.user"})
        self.assertTrue(all('mode = "release" only' in message for message in found.values()))

    def test_the_dashboard_has_endpoints_and_names(self) -> None:
        dashboard = parse(EVERYTHING, BASE).dashboard
        self.assertEqual(dashboard.listen, ("tcp:8001:interface=127.0.0.1",))
        self.assertEqual(dashboard.hosts, ("deploy.example.com",))
        self.assertEqual(parse(SMALLEST, BASE).dashboard, DashboardConfig())
        for bad in ("deploy.example.com:80", "https://x", "*", "", "a..b"):
            found = faults_of(with_server("").replace("[hooks", f'[dashboard]\nhosts = ["{bad}"]\n[hooks'))
            self.assertEqual(list(found), ["dashboard.hosts[0]"], bad)

    def test_the_dashboard_has_a_port_of_its_own(self) -> None:
        text = with_server("").replace("[hooks", '[dashboard]\nlisten = ["tcp:8000:interface=127.0.0.1"]\n[hooks')
        self.assertIn("is taken by server.listen[0] already", faults_of(text)["dashboard.listen[0]"])

    def test_an_app_with_a_secret_of_its_own_gets_a_hook_of_its_own(self) -> None:
        config = parse(SMALLEST.replace('hook = "github"', 'secret = { credential = "blog" }'), BASE)
        self.assertEqual([hook.name for hook in config.hooks], ["github", "blog"])
        self.assertEqual((config.hooks[1].path, config.hooks[1].secrets[0].credential), ("/hooks/blog", "blog"))
        self.assertEqual(config.apps["blog"].hook, "blog")

    def test_an_app_in_place_needs_no_repository(self) -> None:
        text = SMALLEST.replace(
            'repository = "https://github.com/acme/blog.git"', 'mode = "in-place"\npath = "../blog"'
        )
        app = parse(text, BASE).apps["blog"]
        self.assertEqual((app.mode, app.path, app.update), ("in-place", BASE / "../blog", "rebase"))
        self.assertEqual((app.repository, app.names), (None, ()))
        self.assertEqual(parse(text + 'update = "reset"', BASE).apps["blog"].update, "reset")

    def test_apps_keep_the_order_of_the_file(self) -> None:
        more = "".join(f'[apps.{name}]\nhook = "github"\nrepository = "/srv/{name}"\n' for name in "zay")
        self.assertEqual(list(parse(SMALLEST + more, BASE).apps), ["blog", "z", "a", "y"])

    def test_a_config_is_frozen(self) -> None:
        config = parse(SMALLEST, BASE)
        with self.assertRaises(AttributeError):
            config.apps["blog"].workers = 3  # type: ignore[misc]
        with self.assertRaises(TypeError):
            config.apps["x"] = config.apps["blog"]  # type: ignore[index]

    def test_steps_have_three_forms_and_no_shell_unless_asked(self) -> None:
        text = with_app(
            """build = [
                "make  'two words' $HOME",
                ["make", "all && nothing"],
                { name = "assets", run = "a | b", shell = true, timeout = "2m", env = { A = "1" } },
                { run = ["npm", "ci"] },
            ]"""
        )
        self.assertEqual(
            parse(text, BASE).apps["blog"].build,
            (
                StepConfig("make 'two words' $HOME", ("make", "two words", "$HOME")),
                StepConfig("make 'all && nothing'", ("make", "all && nothing")),
                StepConfig("assets", ("/bin/sh", "-c", "a | b"), 120.0, {"A": "1"}),
                StepConfig("npm ci", ("npm", "ci")),
            ),
        )
        self.assertEqual(parse(with_app("build = []"), BASE).apps["blog"].build, ())
        self.assertEqual(parse(with_app('build = "auto"'), BASE).apps["blog"].build, "auto")

    def test_durations_are_seconds(self) -> None:
        durations = {"500ms": 0.5, "30s": 30.0, "5m": 300.0, "2h": 7200.0, "1d": 86_400.0, "0s": 0.0, "0": 0.0}
        for text, seconds in durations.items():
            self.assertEqual(parse(with_app(f'drain = "{text}"'), BASE).apps["blog"].drain, seconds)

    def test_relative_paths_are_relative_to_the_file(self) -> None:
        text = with_server('listen = ["unix:run/hooks.sock:mode=660", "tls:certs:8443", "tcp:80"]').replace(
            '"/var/lib/hookdeploy"', '"state"'
        )
        config = parse(
            text.replace('"https://github.com/acme/blog.git"', '"../blog.git"') + 'bind = "unix:web.sock"', BASE
        )
        self.assertEqual(config.state, BASE / "state")
        self.assertEqual(
            config.server.listen,
            (
                "unix:address=/etc/hookdeploy/run/hooks.sock:mode=660",
                "tls:path=/etc/hookdeploy/certs:port=8443",
                "tcp:80",
            ),
        )
        self.assertEqual(config.apps["blog"].bind, "unix:/etc/hookdeploy/web.sock")
        self.assertEqual(config.apps["blog"].repository, "/etc/hookdeploy/../blog.git")

    def test_the_names_are_the_last_two_components_of_the_url(self) -> None:
        for url, expected in {
            "https://github.com/acme/blog.git": "acme/blog",
            "https://gitlab.example.com:8443/group/sub/blog/": "sub/blog",
            "ssh://git@host:2222/acme/blog": "acme/blog",
            "git@github.com:acme/blog.git": "acme/blog",
            "host:blog.git": "blog",
            "/srv/git/blog.git": "git/blog",
            "/srv/blog/.git": "srv/blog",
            "file:///srv/git/blog.git": "git/blog",
        }.items():
            config = parse(SMALLEST.replace("https://github.com/acme/blog.git", url), BASE)
            self.assertEqual(config.apps["blog"].names, (expected,))
            self.assertEqual(config.apps["blog"].repository, url)
        self.assertEqual(parse(with_app('names = ["a/b", "c/d"]'), BASE).apps["blog"].names, ("a/b", "c/d"))


class FaultTests(SynchronousTestCase):
    """What is said of a bad file."""

    def test_every_fault_is_reported_at_once_with_its_key_path(self) -> None:
        """P93: unknown key, wrong type and duplicate hook path, together, whichever kind each is."""
        found = faults_of(
            """
            stat = "/x"
            [hooks.a]
            path = "/github"
            secrets = [{ file = "a" }]
            [hooks.b]
            path = "/github"
            secrets = []
            [apps.blog]
            hook = "githu"
            workers = "two"
            worker = 2
            paths = ["/blog/**"]
            """
        )
        self.assertEqual(
            found,
            {
                "state": "is missing: the directory for the journal, releases and logs, "
                'e.g. state = "/var/lib/hookdeploy"',
                "stat": "unknown key; did you mean state?",
                "hooks.b.secrets": "must not be empty",
                "hooks.b.path": '"/github" is the path of hooks.a already',
                "apps.blog.hook": "there is no [hooks.githu]",
                "apps.blog.repository": "is missing: what to fetch from, "
                'e.g. repository = "https://github.com/acme/blog.git"',
                "apps.blog.workers": 'must be an integer, not "two"',
                "apps.blog.worker": "unknown key; did you mean workers?",
                "apps.blog.paths[0]": "must be a pattern of paths inside the repository, "
                'such as "blog/**", not "/blog/**"',
            },
        )

    def test_a_syntax_error_is_reported_with_line_and_column(self) -> None:
        self.assertEqual(faults_of('state = "x"\nhooks = \n'), {"line 2, column 9": "invalid value"})
        self.assertEqual(list(faults_of("state = [")), ["line 1, column 10"])

    def test_an_error_prints_one_fault_a_line_behind_the_name_of_the_file(self) -> None:
        error = ConfigError(
            [Fault("apps.blog.workers", 'must be an integer, not "two"'), Fault("", "is odd")], "x.toml"
        )
        self.assertEqual(str(error), 'x.toml: apps.blog.workers: must be an integer, not "two"\nx.toml: is odd')

    def test_values_of_the_wrong_type_or_size_are_refused(self) -> None:
        for line, path, words in (
            ('workers = "2"', "workers", "must be an integer"),
            ("workers = true", "workers", "must be an integer, not true"),
            ("workers = 2.0", "workers", "must be an integer, not 2.0"),
            ("workers = 0", "workers", "must be 1 or more, not 0"),
            ("workers = 9999", "workers", "must be 1024 or less"),
            (f"workers = 0x{'f' * 5000}", "workers", "so large a number"),
            ("workers = 2020-01-01", "workers", "not a date"),
            ("keep = 0", "keep", "must be 1 or more"),
            ("branch = 5", "branch", "must be a string, not 5"),
            ("names = []", "names", "must not be empty"),
            ('names = "a/b"', "names", "must be a list"),
            ('env = ["A=1"]', "env", "must be a table, not a list"),
            ("env = { A = 5 }", "env.A", "must be a string"),
            ('env = { "A B" = "5" }', 'env."A B"', "is not the name of an environment variable"),
            ('env = { HOOKDEPLOY_APP = "x" }', "env.HOOKDEPLOY_APP", "is set by hookdeploy itself"),
            ('env = { A = "\\u0000" }', "env.A", "NUL"),
            ("env_file = 5", "env_file", "must be a path"),
            ('env_file = "~/x"', "env_file", '"~" is not expanded'),
            ('drain = "1w"', "drain", '"30s"'),
            ('drain = "d"', "drain", '"90d"'),
            ('poll = "4999ms"', "poll", 'must be 5s or more, or "0" for never'),
            ('poll = "1s"', "poll", "must be 5s or more"),
            ("poll = 300", "poll", "not a bare number"),
            ("poll = false", "poll", "must be a duration"),
            ('pol = "5m"', "pol", "did you mean poll?"),
            ("tag = true", "tag", "must be a string, not true"),
            ('tags = "v*"', "tags", "did you mean tag?"),
            ("drain = 30", "drain", "not a bare number"),
            ('drain = "9999999999999h"', "drain", "must be a duration"),
            ('health_timeout = "0s"', "health_timeout", "must be longer than 0"),
            ('step_timeout = "0"', "step_timeout", "must be longer than 0"),
            ('mode = "inplace"', "mode", 'must be "release" or "in-place", not "inplace"'),
            ('wsgi = "wsgi.py"', "wsgi", '"wsgi:application"'),
            ('wsgi = "a b"', "wsgi", "module:attribute"),
            ('health = "healthz"', "health", "must be a path"),
            ('health = "/a\\nb"', "health", "must be a path"),
            ('build = "make"', "build", "put the step into [ ]"),
            ('build = [""]', "build[0]", "empty command"),
            ("build = [[]]", "build[0]", "empty command"),
            ('build = ["ok", "echo \'x"]', "build[1]", "a quotation mark is not closed"),
            ("build = [5]", "build[0]", "must be a command"),
            ('build = [["a", 5]]', "build[0]", "must be a command"),
            ('build = [{ run = ["a"], shell = true }]', "build[0]", "must be a string"),
            ('build = [{ cmd = "a", run = "b" }]', "build[0].cmd", "unknown key"),
            ('build = [{ run = "b", timeout = "0" }]', "build[0].timeout", "longer than 0"),
            ('migrate = "make"', "migrate", "must be a list"),
            ('migrate = [""]', "migrate[0]", "empty command"),
            ('migrate = [{ run = "b", timeot = "1s" }]', "migrate[0].timeot", "did you mean timeout?"),
            ("probation = 5", "probation", "not a bare number"),
            ('probation = "-1s"', "probation", "must be a duration"),
            ("probation_deaths = -1", "probation_deaths", "must be 0 or more, not -1"),
            ("probation_deaths = true", "probation_deaths", "must be an integer, not true"),
            ('probation_errors = "3"', "probation_errors", 'must be an integer, not "3"'),
            ("probation_error = 3", "probation_error", "did you mean probation_errors?"),
            ("nice = 20", "nice", "must be 19 or less, not 20"),
            ("nice = -1", "nice", "must be 0 or more, not -1"),
            ("nice = 1.5", "nice", "must be an integer, not 1.5"),
            ("user = 1000", "user", "must be a string, not 1000"),
            ('user = ""', "user", "must not be empty"),
            ('user = "a\\nb"', "user", "one line"),
            ('command = ["uvicorn", "app:app"]\nbind = "unix:/x"', "command", "must have {fd} in it"),
            ('command = "uvicorn --fd 3"\nbind = "unix:/x"', "command", "must have {fd} in it"),
            ('command = ""\nbind = "unix:/x"', "command", "empty command"),
            ('command = []\nbind = "unix:/x"', "command", "empty command"),
            ('command = "uvicorn \'{fd}"\nbind = "unix:/x"', "command", "a quotation mark is not closed"),
            ('command = ["uvicorn", 5]\nbind = "unix:/x"', "command", "must be a command"),
            ('command = { run = "x {fd}" }\nbind = "unix:/x"', "command", "a string or a list"),
            ("command = 5", "command", "a string or a list"),
        ):
            found = faults_of(with_app(line))
            self.assertIn(f"apps.blog.{path}", found, line)
            self.assertIn(words, found[f"apps.blog.{path}"], line)

    def test_a_shared_path_lies_inside_the_tree(self) -> None:
        for good in ("media", "media/", "a/b.sqlite3", "a/b/", ".env", "..a", "ü", "a b", ".github", "a/.git"):
            self.assertEqual(parse(with_app(f'shared = ["{good}"]'), BASE).apps["blog"].shared, (good,))
        for bad in (
            "", " ", "/", "/media", ".", "./media", "..", "../x", "a/../b", "a//b", "a//", "a/.", ".git", ".git/",
            ".git/x", "a\\nb", "a\\u0000",
        ):  # fmt: skip
            self.assertIn("apps.blog.shared[0]", faults_of(with_app(f'shared = ["{bad}"]')), bad)
        self.assertIn("must be a list", faults_of(with_app('shared = "media"'))["apps.blog.shared"])

    def test_shared_paths_are_not_in_each_others_way(self) -> None:
        for paths, words in (
            ('["media", "media"]', '"media" is named twice'),
            ('["media", "media/"]', '"media" is named twice'),
            ('["media/", "media/img"]', '"media/img" lies inside "media"'),
            ('["a/b/c", "a/"]', '"a/b/c", which is shared already, lies inside "a"'),
        ):
            self.assertIn(words, faults_of(with_app(f"shared = {paths}"))["apps.blog.shared[1]"], paths)
        found = faults_of(with_app('shared = ["a", "../b", "a", "a/c", 5, 5]'))
        self.assertEqual(set(found), {f"apps.blog.shared[{place}]" for place in (1, 2, 3, 4, 5)})
        parse(with_app('shared = ["media", "media2", "media-old/", "a/media"]'), BASE)

    def test_an_app_has_one_kind_of_server_and_every_conflict_is_named(self) -> None:
        found = faults_of(with_app('command = "x {fd}"\nwsgi = "a:b"\nworkers = 2\ngunicorn = ["--preload"]'))
        self.assertEqual(set(found), {f"apps.blog.{key}" for key in ("wsgi", "workers", "gunicorn", "bind")})
        self.assertIn("wsgi or a command", found["apps.blog.wsgi"])
        self.assertIn("for gunicorn only", found["apps.blog.workers"])
        self.assertIn("is missing: the socket that command is to inherit", found["apps.blog.bind"])
        parse(with_app(COMMAND), BASE)

    def test_the_disk_floor_is_a_number_of_bytes(self) -> None:
        for line, words in (
            ("min_free = -1", "must be 0 or more, not -1"),
            ('min_free = "1G"', 'must be an integer, not "1G"'),
            ("min_free = 0.05", "must be an integer, not 0.05"),
        ):
            self.assertIn(words, faults_of(with_server(line))["server.min_free"])

    def test_what_the_journal_keeps_and_how_many_build_at_once_are_checked(self) -> None:
        for line, key, words in (
            ("max_builds = 0", "max_builds", "must be 1 or more, not 0"),
            ('max_builds = "2"', "max_builds", 'must be an integer, not "2"'),
            ('history = "0d"', "history", "must be longer than 0"),
            ("history = 90", "history", "not a bare number"),
            ("history_rows = 99", "history_rows", "must be 100 or more, not 99"),
            ("history_rows = 1.5", "history_rows", "must be an integer, not 1.5"),
            ("max_build = 2", "max_build", "did you mean max_builds?"),
            ("history_row = 200", "history_row", "did you mean history_rows?"),
        ):
            found = faults_of(with_server(line))
            self.assertIn(words, found[f"server.{key}"], line)

    def test_a_bind_that_is_no_address_is_refused(self) -> None:
        for good in ("0.0.0.0:80", "localhost:8080", "[::1]:8080", "unix:/run/x.sock", "my-host.example:1"):
            self.assertEqual(parse(with_app(f'bind = "{good}"'), BASE).apps["blog"].bind, good)
        for bad in (
            "8080",
            ":8080",
            "::1:8080",
            "[::x]:80",
            "1.2.3:80",
            "a b:80",
            "h:65536",
            "h:x",
            "unix:",
            "unix:/" + "x" * 107,
        ):
            self.assertIn("apps.blog.bind", faults_of(with_app(f'bind = "{bad}"')), bad)

    def test_two_apps_with_one_clone_are_refused(self) -> None:
        """Each would put the other back."""

        def two(one: str, other: str) -> str:
            app = 'hook = "github"\nmode = "in-place"\npath = "{}"\n'
            head = SMALLEST.partition("[apps.blog]")[0]
            return f"{head}[apps.blog]\n{app.format(one)}[apps.two]\n{app.format(other)}"

        for one, other in (("blog", "blog"), ("/srv/blog", "/srv/x/../blog/")):
            self.assertEqual(faults_of(two(one, other))["apps.two.path"], "is the clone of apps.blog already")
        parse(two("blog", "two"), BASE)

    def test_two_apps_with_one_socket_are_refused(self) -> None:
        def two(one: str, other: str) -> str:
            second = f'[apps.two]\nhook = "github"\nrepository = "/srv/two"\nwsgi = "a:b"\nbind = "{other}"\n'
            return with_app(f'wsgi = "a:b"\nbind = "{one}"\n{second}')

        for one, other in (
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "10.0.0.1:80"),
            ("localhost:80", "127.0.0.1:80"),
            ("unix:/a", "unix:/a"),
        ):
            self.assertIn("is taken by apps.blog.bind already", faults_of(two(one, other))["apps.two.bind"])
        for one, other in (("127.0.0.1:80", "127.0.0.2:80"), ("127.0.0.1:0", "127.0.0.1:0"), ("unix:/a", "unix:/b")):
            parse(two(one, other), BASE)
        self.assertIn(
            "server.listen[0]", faults_of(with_app('wsgi = "a:b"\nbind = "127.0.0.1:8000"'))["apps.blog.bind"]
        )

    def test_a_command_takes_a_socket_as_gunicorn_does(self) -> None:
        second = '[apps.two]\nhook = "github"\nrepository = "/srv/two"\nwsgi = "a:b"\nbind = "127.0.0.1:8080"\n'
        self.assertIn("apps.blog.bind already", faults_of(with_app(COMMAND + second))["apps.two.bind"])
        without = faults_of(with_app('command = "x {fd}"\n' + second))
        self.assertEqual(set(without), {"apps.blog.bind"})

    def test_two_apps_without_a_server_share_the_default_bind(self) -> None:
        parse(with_app('[apps.two]\nhook = "github"\nrepository = "/srv/two"\n'), BASE)

    def test_hooks_are_checked(self) -> None:
        for line, path, words in (
            ('forge = "svn"', "hooks.github.forge", '"standard", not "svn"'),
            ('path = "github"', "hooks.github.path", "must be a path"),
            ('path = "/a/"', "hooks.github.path", "must be a path"),
            ('path = "/a/../b"', "hooks.github.path", "must be a path"),
            ('path = "/<x>"', "hooks.github.path", "must be a path"),
            ('path = "/healthz"', "hooks.github.path", "hookdeploy itself"),
            ('allow_sha1 = "yes"', "hooks.github.allow_sha1", 'must be true or false, not "yes"'),
            ('secret = "x"', "hooks.github.secret", "did you mean secrets?"),
            ('[hooks."Bad Name"]\nsecrets = [{ env = "A" }]', 'hooks."Bad Name"', "is not a usable name"),
            (
                '[hooks.two]\npath = "/hooks/github"\nsecrets = [{ env = "A" }]',
                "hooks.two.path",
                "the path of hooks.github",
            ),
            ("[hooks.two]", "hooks.two.secrets", "is missing"),
            ('token = "in plain sight"', HOOK_TOKEN, "{ file = "),
            ('token = [{ env = "A" }]', HOOK_TOKEN, "{ file = "),
            ("token = {}", HOOK_TOKEN, "exactly one"),
            ('token = { env = "A", file = "b" }', HOOK_TOKEN, "exactly one"),
            ('token = { fil = "a" }', f"{HOOK_TOKEN}.fil", "did you mean file?"),
            ('tokn = { env = "A" }', "hooks.github.tokn", "did you mean token?"),
            ('api = "github.example.com"', "hooks.github.api", "must be an address such as"),
            ('api = "ftp://github.example.com"', "hooks.github.api", "must be an address such as"),
            ('api = "http://github.example.com"', "hooks.github.api", "must be https://"),
            ('api = "http://127.0.0.1.example.com"', "hooks.github.api", "must be https://"),
            ('api = "https://x/?a=b"', "hooks.github.api", "no ? and no #"),
            ('api = "https://x:y"', "hooks.github.api", "is not a valid URL"),
            ("api = 5", "hooks.github.api", "must be a string"),
        ):
            found = faults_of(with_hook(line))
            self.assertIn(path, found, line)
            self.assertIn(words, found[path], line)

    def test_a_secret_has_exactly_one_source(self) -> None:
        """P09: a hook without a secret never starts."""
        for secrets, path in (
            ("[]", ""),
            ("[{}]", "[0]"),
            ('[{ file = "a", env = "B" }]', "[0]"),
            ('["in plain sight"]', "[0]"),
            ('[{ fil = "a" }]', "[0].fil"),
            ('[{ env = "A-B" }]', "[0].env"),
            ('[{ credential = "../x" }]', "[0].credential"),
        ):
            found = faults_of(SMALLEST.replace('[{ file = "hook.secret" }]', secrets))
            self.assertIn(f"hooks.github.secrets{path}", found, secrets)

    def test_an_app_has_a_hook_or_a_secret(self) -> None:
        self.assertIn("no push could reach it", faults_of(SMALLEST.replace('hook = "github"', ""))["apps.blog"])
        self.assertIn("remove one", faults_of(with_app('secret = { env = "A" }'))["apps.blog.secret"])
        self.assertIn(
            "did you mean github?", faults_of(SMALLEST.replace('hook = "github"', 'hook = "gihub"'))["apps.blog.hook"]
        )
        clash = SMALLEST.replace('hook = "github"', 'secret = { env = "A" }').replace("apps.blog", "apps.github")
        self.assertIn("there is [hooks.github] already", faults_of(clash)["apps.github.secret"])

    def test_what_belongs_to_one_mode_is_refused_in_the_other(self) -> None:
        self.assertIn("apps.blog.path", faults_of(with_app('path = "/srv/blog"')))
        self.assertIn("apps.blog.update", faults_of(with_app('update = "reset"')))
        self.assertIn("apps.blog.path", faults_of(with_app('mode = "in-place"')))

    def test_tags_are_for_releases_and_not_beside_a_branch(self) -> None:
        self.assertIn("a branch or tags", faults_of(with_app('tag = "v*"\nbranch = "main"'))["apps.blog.tag"])
        in_place = SMALLEST.replace('repository = "https://github.com/acme/blog.git"', 'mode = "in-place"\npath = "x"')
        self.assertIn('mode = "release" only', faults_of(f'{in_place}tag = "v*"')["apps.blog.tag"])

    def test_only_github_is_asked_for_what_has_failed(self) -> None:
        found = {
            fault.path: fault.message
            for fault in read(with_hook('forge = "gitea"\ntoken = { env = "T" }\napi = "https://x"'), BASE).faults
        }
        for key in ("token", "api"):
            self.assertEqual(found[f"hooks.github.{key}"], 'is for forge = "github" only')

    def test_a_file_without_apps_is_refused(self) -> None:
        self.assertEqual(faults_of('state = "x"'), {"apps": "is missing: at least one [apps.<name>]"})
        self.assertEqual(faults_of('state = "x"\napps = {}'), {"apps": "must not be empty"})
        self.assertEqual(faults_of('state = "x"\napps = 5'), {"apps": "must be a table, not 5"})

    def test_endpoints_of_the_wrong_shape_are_refused(self) -> None:
        for bad in (
            "8000", "0.0.0.0:8000", "udp:53", "tcp", "tcp:", "tcp:x", "tcp:65536", "tcp:80:iface=1", "tcp:1:2:3:4",
            "unix:", "systemd:domain=INET", "systemd:INET:index=0:name=x", "tls:", "tls:/c:99999", "",
            "haproxy:", "haproxy:8000", "haproxy:tcp:x", "haproxy:haproxy:tcp:80",
        ):  # fmt: skip
            self.assertIn("server.listen[0]", faults_of(with_server(f'listen = ["{bad}"]')), bad)
        self.assertIn("server.listen", faults_of(with_server("listen = []")))

    def test_endpoints_that_are_let_through_are_understood_by_twisted(self) -> None:
        reactor = MemoryReactorClock()
        for good in (
            "tcp:8000", "tcp:port=80:interface=127.0.0.1", r"tcp6:80:interface=\:\:1", "unix:/run/a.sock:mode=660",
            "unix:mode=600:a.sock", r"unix:odd\:name\=x", "tls:certs", "tls:certs:8443:interface=127.0.0.1",
        ):  # fmt: skip
            serverFromString(reactor, addresses.endpoint(good, BASE))
        odd = serverFromString(reactor, addresses.endpoint(r"unix:odd\:name\=x", BASE))
        self.assertEqual(odd._address, "/etc/hookdeploy/odd:name=x")

    def test_the_proxy_protocol_may_stand_before_an_endpoint(self) -> None:
        reactor = MemoryReactorClock()
        for good in ("haproxy:tcp:8000", r"haproxy:tcp6:80:interface=\:\:1", r"haproxy:unix:odd\:name\=x"):
            text = parse(with_server(f"listen = ['{good}']\ntrusted_proxies = ['unix', '10.0.0.0/8']"), BASE)
            serverFromString(reactor, text.server.listen[0])
        self.assertEqual(text.server.listen, (r"haproxy:unix:address=/etc/hookdeploy/odd\:name\=x",))
        self.assertEqual(addresses.endpoint_address("haproxy:tcp:8000"), ("", 8000))

    def test_who_may_claim_any_address_wants_somebody_who_is_believed(self) -> None:
        found = faults_of(with_server('listen = ["tcp:1", "haproxy:tcp:8000"]'))
        self.assertEqual(list(found), ["server.listen[1]"])
        self.assertIn("may claim to come from any address", found["server.listen[1]"])
        self.assertIn("trusted_proxies", found["server.listen[1]"])

    def test_the_environment_has_no_way_to_say_who_is_believed(self) -> None:
        environ = {"GITHUB_SECRET": "x" * 32, "REPO_PATH": "/srv/blog", "HOOK_LISTEN": "haproxy:tcp:8000"}
        [fault] = read_environment(environ).faults
        self.assertEqual(fault.path, "HOOK_LISTEN")
        self.assertIn("in a hookdeploy.toml", fault.message)

    def test_proxies_are_networks_or_the_unix_sockets(self) -> None:
        good = '["127.0.0.1", "10.0.0.0/8", "::1/128", "unix"]'
        trusted = parse(with_server(f"trusted_proxies = {good}"), BASE).server.trusted_proxies
        self.assertEqual(trusted, ("127.0.0.1", "10.0.0.0/8", "::1/128", "unix"))
        for bad, words in (
            ("UNIX", "must be a network"), ("", "must be a network"), ("github", "must be a network"),
            ("10.0.0.1/8", 'did you mean "10.0.0.0/8"?'), ("10.0.0.0/33", "must be a network"),
            ("::ffff:10.0.0.0/104", 'write it as "10.0.0.0/8"'), ("proxy.example.com", "must be a network"),
        ):  # fmt: skip
            self.assertIn(words, faults_of(with_server(f'trusted_proxies = ["{bad}"]'))["server.trusted_proxies[0]"])

    def test_a_hook_may_be_for_some_networks_only_and_for_those_of_github(self) -> None:
        config = parse(with_hook('only_from = ["github", "203.0.113.0/24"]'), BASE)
        self.assertEqual(config.hooks[0].only_from, ("github", "203.0.113.0/24"))
        self.assertEqual(parse(SMALLEST, BASE).hooks[0].only_from, ())
        for bad, where in (('["gitlab"]', "[0]"), ('["unix"]', "[0]"), ("[]", ""), ('["::1", 5]', "[1]")):
            self.assertIn(f"hooks.github.only_from{where}", faults_of(with_hook(f"only_from = {bad}")), bad)

    def test_only_github_publishes_its_networks(self) -> None:
        found = faults_of(with_hook('forge = "gitea"\nonly_from = ["::1", "github"]'))
        self.assertEqual(
            found, {"hooks.github.only_from[1]": '"github" is for forge = "github" only: name the networks'}
        )

    def test_patterns_of_paths_lie_inside_the_repository(self) -> None:
        good = ["services/blog/**", "*.py", "!docs/", "a b/[!x]?", "!**/*.md", "...", ":(top)x"]
        self.assertEqual(parse(with_app(f"paths = {good}"), BASE).apps["blog"].paths, tuple(good))
        for bad in ("", "!", "/", "/etc", "!/etc", "..", "a/../b", "./a", "a//b", "a/..", " ", "a\\nb", "a\\u0000b"):
            self.assertIn("apps.blog.paths[0]", faults_of(with_app(f'paths = ["{bad}"]'.replace("\\\\", "\\"))), bad)
        self.assertIn("apps.blog.paths", faults_of(with_app('paths = "blog/**"')))

    def test_an_app_may_have_several_secrets_of_its_own(self) -> None:
        """Each has its key path: as it is written where it is wrong, and by its place where there are several."""
        own = SMALLEST.replace('hook = "github"', "secret = {}")
        one = parse(own.replace("{}", '{ env = "A" }'), BASE).hooks[1].secrets
        two = parse(own.replace("{}", '[{ env = "A" }, { env = "B" }]'), BASE).hooks[1].secrets
        self.assertEqual([each.where for each in one], ["apps.blog.secret"])
        self.assertEqual(
            [(each.where, each.env) for each in two], [("apps.blog.secret[0]", "A"), ("apps.blog.secret[1]", "B")]
        )
        for bad, where in (
            ('"hunter2"', ""), ("[]", ""), ("{}", ""), ('{ env = "A", x = 1 }', ".x"), ('[{ env = "A" }, "x"]', "[1]"),
            ("[{ env = 5 }]", "[0].env"), ("{ env = 5 }", ".env"), ("false", ""),
        ):  # fmt: skip
            self.assertEqual(list(faults_of(own.replace("{}", bad))), [f"apps.blog.secret{where}"], bad)

    def test_a_public_url_is_an_address_without_user_or_query(self) -> None:
        self.assertEqual(
            parse(with_server('public_url = "https://a.example/x/"'), BASE).server.public_url, "https://a.example/x"
        )
        for bad in (
            "deploy.example.com",
            "ftp://x",
            "https://",
            "https://u:p@x",
            "https://x/?a",
            "https://x:99999",
            "https://[x",
        ):
            self.assertIn("server.public_url", faults_of(with_server(f'public_url = "{bad}"')), bad)


class RepositoryTests(SynchronousTestCase):
    """What git is let near."""

    def test_what_could_run_a_command_is_refused(self) -> None:
        """P60: a transport that runs programs, and options in the place of a remote."""
        for bad in (
            "ext::sh -c touch% PWN", "fd::17", "--upload-pack=x", "-oProxyCommand=x:y", "ssh://-oProxyCommand=x/y",
            "ssh://-o@host/y", "host:-x", "git@host:", "-", "git@-oX:y", "x::y:z",
        ):  # fmt: skip
            self.assertIn(
                "apps.blog.repository", faults_of(SMALLEST.replace("https://github.com/acme/blog.git", bad)), bad
            )

    def test_other_odd_remotes_are_refused(self) -> None:
        for bad in (
            "http://github.com/a/b", "git://github.com/a/b", "ftp://x/y", "https://host", "https:///a/b", "/", " ", "",
            "https://h/a b", "https://h/a/b?token=x", "https://h:x/a/b", "~/blog", "file://other/a/b", "a\\nb", "https://[/a",
        ):  # fmt: skip
            self.assertIn(
                "apps.blog.repository", faults_of(SMALLEST.replace("https://github.com/acme/blog.git", bad)), bad
            )

    def test_a_password_in_the_url_is_refused_and_not_repeated(self) -> None:
        for bad in ("https://u:canary@h/a/b", "https://canary@h/a/b", "ssh://git:canary@h/a/b"):
            message = faults_of(SMALLEST.replace("https://github.com/acme/blog.git", bad))["apps.blog.repository"]
            self.assertIn("must not hold a user name or password", message)
            self.assertNotIn("canary", message)

    def test_a_forge_on_this_very_machine_may_be_reached_without_tls(self) -> None:
        parse(SMALLEST.replace("https://github.com/acme/blog.git", "http://127.0.0.1:3000/acme/blog.git"), BASE)

    def test_only_names_that_git_allows_are_branches(self) -> None:
        for name in ("main", "feature/x", "a.b", "ü", "a@b", "v1.0-rc_2"):
            self.assertEqual(parse(with_app(f'branch = "{name}"'), BASE).apps["blog"].branch, name)
        for name in (
            "-x",
            "x..y",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "@",
            "HEAD",
            "a b",
            "a~",
            "a^",
            "a:",
            "a?",
            "a*",
            "a[",
        ):
            self.assertIn("apps.blog.branch", faults_of(with_app(f'branch = "{name}"')), name)
        for name in ("a\\\\", "a//b", "/a", "a/", "a.", "a@{b", "", "\\u007f", "\\u0085", " "):
            self.assertIn("apps.blog.branch", faults_of(with_app(f'branch = "{name}"')), name)
        self.assertIn('"main"', faults_of(with_app('branch = "refs/heads/main"'))["apps.blog.branch"])

    @given(st.text(alphabet=st.sampled_from("aB.-/@{~^:?*[\\ \x01lock"), max_size=12))
    def test_no_branch_is_let_through_that_git_refuses(self, name: str) -> None:
        try:
            configvalues.branch(name)
        except ValueError:
            return
        subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"], check=True)

    def test_a_pattern_that_no_tag_could_match_is_refused(self) -> None:
        for pattern in (
            "v *",
            "v~",
            "v^*",
            "v:*",
            "a..b",
            "*.lock",
            "a/",
            "/a",
            "a//b",
            "a/.b",
            "v*.",
            "-v",
            "@{",
            "",
        ):
            self.assertIn("apps.blog.tag", faults_of(with_app(f'tag = "{pattern}"')), pattern)
        for pattern in ("v\\\\*", "v\\u0000", "v\\n", "v[", "v[0-9", "[]", "[!]", "v[^0]", "[a/b]", "v[[:digit:]]"):
            self.assertIn("apps.blog.tag", faults_of(with_app(f'tag = "{pattern}"')), pattern)
        self.assertIn('"v*"', faults_of(with_app('tag = "refs/tags/v*"'))["apps.blog.tag"])

    @given(st.text(alphabet=st.sampled_from("aB.-/@{~^:\\ \x01lock"), max_size=12))
    def test_a_plain_name_is_a_pattern_if_git_would_make_such_a_tag(self, name: str) -> None:
        made = subprocess.run(["git", "check-ref-format", f"refs/tags/{name}"], check=False).returncode == 0
        try:
            configvalues.tag(name)
        except ValueError:
            self.assertTrue(not made or name.startswith(("-", "refs/")), name)
        else:
            self.assertTrue(made, name)


class SharedPathTests(SynchronousTestCase):
    """What a release has in common with others stays inside it."""

    @given(st.lists(st.text(alphabet=st.sampled_from("ab./\x01"), max_size=8), max_size=4))
    def test_no_shared_path_leaves_the_tree_or_covers_another(self, paths: list[str]) -> None:
        reading = read(with_app(f"shared = {as_toml_value(list(paths))}"), BASE)
        if reading.config is None:
            self.assertTrue(all(fault.path.startswith("apps.blog.shared[") for fault in reading.faults))
            return
        places = [Path(os.path.normpath(BASE / path)) for path in reading.config.apps["blog"].shared]
        for place in places:
            self.assertTrue(place.is_relative_to(BASE))
            self.assertNotEqual(place, BASE)
        for one, other in itertools.permutations(places, 2):
            self.assertFalse(one.is_relative_to(other))


class GunicornArgumentTests(SynchronousTestCase):
    """hookdeploy owns the socket, the process and the number of workers."""

    def refused(self, argument: str) -> str | None:
        try:
            configvalues.gunicorn_argument(argument)
        except ValueError as error:
            return str(error)
        return None

    def test_arguments_that_break_supervision_are_refused_in_every_form(self) -> None:
        long = "--bind --bind=x --bin --daemon --reload --pid=x --reuse-port --config=x --conf --chdir --user --group"
        short = "--help -b -b0:1 -D -RD -p -c -u -g -w -w4 -v"
        for argument in f"{long} {short} --workers=4 --".split():
            self.assertIsNotNone(self.refused(argument), argument)
        self.assertIn("gunicorn.conf.py", str(self.refused("--config=x")))
        self.assertIn("use workers", str(self.refused("-w4")))
        self.assertIn("apps.blog.gunicorn[1]", faults_of(with_app('gunicorn = ["--preload", "--bind=x"]')))

    def test_every_other_option_of_gunicorn_is_let_through(self) -> None:
        options = [option for action in GunicornConfig().parser()._actions for option in action.option_strings]
        refused = {option for option in options if self.refused(option)}
        long = (
            "bind workers config daemon reload reuse-port pid chdir user group check-config print-config version help"
        )
        expected = {f"--{name}" for name in long.split()} | {f"-{letter}" for letter in "bwcDpugvh"}
        self.assertEqual(refused, expected)
        for value in ("4", "-", "gthread", "--threads=4", "-k", "-kgthread"):
            self.assertIsNone(self.refused(value), value)


class SecrecyTests(SynchronousTestCase):
    """A secret in the wrong place is not repeated: faults end in logs and on screens."""

    def test_no_fault_repeats_what_may_be_a_secret(self) -> None:
        """T45."""
        for text in (
            with_hook('secret = "canary"'),
            SMALLEST.replace('[{ file = "hook.secret" }]', '"canary"'),
            SMALLEST.replace('[{ file = "hook.secret" }]', '["canary"]'),
            SMALLEST.replace('[{ file = "hook.secret" }]', '[{ value = "canary" }]'),
            SMALLEST.replace('hook = "github"', 'secret = "canary"'),
            with_hook('token = "canary"'),
            with_hook('token = ["canary"]'),
            with_hook('token = { value = "canary" }'),
            with_hook('token = { credential = ["canary"] }'),
            with_hook('api = "https://canary@github.example.com"'),
            with_hook('api = "https://x/?token=canary"'),
            with_hook('api = "http://github.example.com/canary"'),
            with_app('env = "canary"'),
            with_app('env = { A = ["canary"] }'),
            with_app('build = ["curl -H \'canary"]'),
            with_app('build = "curl canary"'),
            with_app('migrate = "curl canary"'),
            with_app('migrate = ["curl -H \'canary"]'),
            with_app('command = "serve --token canary"'),
            with_app('command = "serve \'canary {fd}"'),
            SMALLEST.replace("https://github.com/acme/blog.git", "https://canary@github.com/a/b"),
        ):
            self.assertNotIn("canary", str(faults_of(text)), text)

    def test_control_characters_of_the_file_do_not_reach_the_terminal(self) -> None:
        """T27: an escape sequence in a key or a value is shown, not obeyed."""
        for text in (with_app('"\\u001b[31m" = 1'), with_app('mode = "\\u001b[31m"'), with_app('bind = "\\u009b1m"')):
            for path, message in faults_of(text).items():
                self.assertTrue(f"{path}{message}".isprintable(), (path, message))


class EnvironmentTests(SynchronousTestCase):
    """The smallest deployment there is: no file at all."""

    def test_two_variables_are_enough(self) -> None:
        config = from_environment({"GITHUB_SECRET": "canary", "REPO_PATH": "/srv/My Blog/"})
        app = config.apps["my-blog"]
        self.assertEqual(config.state, Path("/srv/.hookdeploy-my-blog"))
        self.assertEqual(
            [(hook.name, hook.path, hook.allow_sha1) for hook in config.hooks], [("github", "/github", False)]
        )
        self.assertEqual(config.server.listen, ("tcp:8000",))
        self.assertEqual((app.path, app.mode, app.update), (Path("/srv/My Blog"), "in-place", "rebase"))
        self.assertEqual((app.names, app.build, app.wsgi, app.bind, app.branch), ((), (), None, "127.0.0.1:8080", None))
        self.assertEqual((app.probation, app.migrate, app.user, app.nice), (5.0, (), None, 10))
        self.assertEqual((app.poll, app.tag, config.server), (300.0, None, ServerConfig()))
        literal = config.hooks[0].secrets[0].literal
        self.assertEqual(literal and literal.get_secret_value(), b"canary")
        self.assertNotIn("canary", repr(config))

    def test_every_variable_counts(self) -> None:
        config = from_environment(
            {
                "GITHUB_SECRET": "x",
                "GITHUB_ALLOW_SHA1": "1",
                "REPO_PATH": "blog",
                "APP_MODULE": "a.b:c",
                "APP_BIND": "unix:x.sock",
                "APP_POLL": "30s",
                "HOOK_LISTEN": "tcp:9000",
                "DASHBOARD_LISTEN": "tcp:9001:interface=127.0.0.1",
                "HOOKDEPLOY_STATE": "state",
            },
            Path("/srv"),
        )
        app = config.apps["blog"]
        self.assertEqual((app.path, config.state), (Path("/srv/blog"), Path("/srv/state")))
        self.assertEqual((app.wsgi, app.bind, app.poll), ("a.b:c", "unix:/srv/x.sock", 30.0))
        self.assertEqual((config.server.listen, config.hooks[0].allow_sha1), (("tcp:9000",), True))
        self.assertEqual(config.dashboard.listen, ("tcp:9001:interface=127.0.0.1",))

    def test_every_fault_names_its_variable(self) -> None:
        """P09: an empty secret is no secret."""
        with self.assertRaises(ConfigError) as caught:
            from_environment(
                {
                    "GITHUB_SECRET": "",
                    "GITHUB_ALLOW_SHA1": "yes",
                    "APP_MODULE": "wsgi.py",
                    "APP_BIND": "8080",
                    "HOOK_LISTEN": "8000",
                    "DASHBOARD_LISTEN": "8001",
                }
            )
        said = {fault.path: fault.message for fault in caught.exception.faults}
        self.assertEqual(
            set(said),
            {
                "GITHUB_SECRET",
                "GITHUB_ALLOW_SHA1",
                "REPO_PATH",
                "APP_MODULE",
                "APP_BIND",
                "HOOK_LISTEN",
                "DASHBOARD_LISTEN",
            },
        )
        self.assertIn("is empty", said["GITHUB_SECRET"])
        self.assertIn("is not set", said["REPO_PATH"])
        self.assertIn("must be a Twisted endpoint", said["DASHBOARD_LISTEN"])

    def test_a_directory_without_usable_letters_is_called_app(self) -> None:
        self.assertEqual(list(from_environment({"GITHUB_SECRET": "x", "REPO_PATH": "/srv/ü"}).apps), ["app"])
        self.assertEqual(list(from_environment({"GITHUB_SECRET": "x", "REPO_PATH": "/srv/_a.B_"}).apps), ["a-b"])


DOCUMENTATION = (Path(__file__).parent.parent / "docs/configuration.md").read_text()


class DocumentationTests(SynchronousTestCase):
    """What docs/configuration.md says is so."""

    def documented(self, heading: str) -> set[str]:
        """The keys of the table under a heading, and those that its section says are not available yet."""
        section = DOCUMENTATION.partition(f"### `[{heading}]`\n")[2].partition("\n###")[0]
        rows = (line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
        later = re.findall("^Not available yet: (.*)", section, re.MULTILINE)
        return {key for text in (*rows, *later) for key in re.findall("`([a-z0-9_]+)`", text)}

    def test_every_key_is_documented_and_no_other(self) -> None:
        self.assertEqual(self.documented("server"), set(ServerTable.model_fields))
        self.assertEqual(self.documented("dashboard"), set(DashboardTable.model_fields))
        self.assertEqual(self.documented("hooks.<name>"), set(HookTable.model_fields))
        # A secret of the app's own is told of with the hook.
        self.assertEqual(self.documented("apps.<name>"), set(AppTable.model_fields) - {"secret"})

    def test_the_defaults_are_as_documented(self) -> None:
        config = parse(SMALLEST, BASE)
        rows = re.findall(r"^\| `([a-z_]+)` \|.*\| `?\"?([0-9]+)([smd]?)\"?`? \|$", DOCUMENTATION, re.MULTILINE)
        self.assertGreater(len(rows), 10)
        for key, number, unit in rows:
            table = config.server if hasattr(config.server, key) else config.apps["blog"]
            self.assertEqual(getattr(table, key), int(number) * {"": 1, "s": 1, "m": 60, "d": 86_400}[unit], key)

    def test_every_example_is_good(self) -> None:
        examples = re.findall("```toml\n(.*?)```", DOCUMENTATION, re.DOTALL)
        self.assertGreater(len(examples), 3)
        for example in examples:
            head, heading, rest = SMALLEST.partition("[apps.blog]")
            if "[hooks." in example and "[apps." not in example:
                whole = f'state = "state"\n{example}{heading}{rest}'
            else:
                whole = example if "[apps." in example else with_app(example)
            parse(whole if "state =" in whole else head + whole, BASE)


ANYTHING = st.text(alphabet=st.characters())  # lone surrogates too
SCALARS = st.one_of(st.booleans(), st.integers(), st.floats(), ANYTHING, st.dates(), st.just("github"), st.just("0s"))
KNOWN_KEYS = st.sampled_from(
    [
        "state",
        "server",
        "listen",
        "public_url",
        "max_body",
        "dashboard",
        "hooks",
        "github",
        "path",
        "secrets",
        "file",
        "env",
        "allow_sha1",
        "forge",
        "apps",
        "blog",
        "hook",
        "secret",
        "repository",
        "names",
        "branch",
        "mode",
        "build",
        "run",
        "shell",
        "timeout",
        "wsgi",
        "bind",
        "workers",
        "gunicorn",
        "env_file",
        "health",
        "drain",
        "keep",
        "poll",
        "tag",
        "token",
        "api",
        "max_builds",
        "history",
        "history_rows",
        "command",
        "migrate",
        "shared",
        "user",
        "nice",
        "min_free",
    ]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_KEYS | ANYTHING, inner, max_size=5),
    max_leaves=30,
)


class TotalityTests(SynchronousTestCase):
    """Whatever the text is, the answer is a configuration or faults."""

    def outcome(self, text: str) -> None:
        try:
            self.assertIsInstance(parse(text, BASE), Config)
        except ConfigError as error:
            self.assertTrue(error.faults)
            str(error)

    @given(ANYTHING)
    def test_any_text_is_a_config_or_faults(self, text: str) -> None:
        self.outcome(text)

    @given(st.integers(0, len(EVERYTHING)), st.integers(0, 20), st.text(max_size=5))
    def test_any_change_of_a_good_file_is_a_config_or_faults(self, place: int, removed: int, added: str) -> None:
        self.outcome(EVERYTHING[:place] + added + EVERYTHING[place + removed :])

    @given(st.dictionaries(st.sampled_from(["state", "server", "dashboard", "hooks", "apps"]), TREES))
    def test_any_tables_are_a_config_or_faults(self, tables: dict[str, object]) -> None:
        self.outcome(as_toml(tables))

    @given(st.sampled_from(EVERYTHING.split("\n")[1:-1]), TREES)
    def test_any_value_of_any_key_is_a_config_or_faults(self, line: str, value: object) -> None:
        self.outcome(EVERYTHING.replace(line, f"{line.partition(' =')[0]} = {as_toml_value(value)}"))

    def test_numbers_and_nests_that_break_the_reader_are_faults(self) -> None:
        for text in (
            f"a = {'9' * 5000}",
            "a = " + "[" * 5000,
            "a = " + "{a=" * 5000,
            f"{'a.' * 2000}a = 1",
        ):
            self.outcome(text)

    def test_what_is_no_unicode_is_a_fault(self) -> None:
        self.assertEqual(faults_of('state = "\ud800"'), {"": "is not Unicode text"})

    @given(st.dictionaries(st.sampled_from(["state", "server", "hooks", "apps"]), TREES))
    def test_what_a_faulty_file_mentions_can_always_be_told(self, tables: dict[str, object]) -> None:
        for secret in read(as_toml(tables), BASE).mentions.secrets:
            self.assertTrue(secret.where)


def as_toml(tables: dict[str, object]) -> str:
    return "\n".join(f"{key} = {as_toml_value(value)}" for key, value in tables.items())


def as_toml_value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
        case list():
            return f"[{', '.join(map(as_toml_value, value))}]"
        case dict():
            return (
                "{" + ", ".join(f"{as_toml_value(key)} = {as_toml_value(inner)}" for key, inner in value.items()) + "}"
            )
        case _:
            return str(value)
