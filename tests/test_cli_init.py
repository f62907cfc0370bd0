"""``hookdeploy init``: what it writes works at once, what it asks can be answered, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from twisted_hook.cli import hookdeploy
from twisted_hook.cli.questions import find_wsgi
from twisted_hook.cli.starter import Answers, configuration, toml_string, unit
from twisted_hook.config import AppConfig, parse
from twisted_hook.configfile import Settings, load

FILES = {"hookdeploy.toml", "hook.secret", "hookdeploy.service"}
URL = "https://github.com/acme/blog.git"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that lies in no clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clone(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory that is a clone of acme/blog on the branch trunk, with an app in it."""
    path = place / "blog"
    subprocess.run(["git", "init", "-q", "-b", "trunk", path], check=True)
    subprocess.run(["git", "-C", path, "remote", "add", "origin", URL], check=True)
    (path / "wsgi.py").write_text("from blog import create\napp = create()\n")
    monkeypatch.chdir(path)
    return path


def init(*arguments: str, said: str = "") -> Result:
    result = CliRunner().invoke(hookdeploy, ["init", *arguments], input=said)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def settings_in(directory: Path) -> Settings:
    return load(directory / "hookdeploy.toml", os.environ)


def the_app(directory: Path) -> AppConfig:
    (app,) = settings_in(directory).config.apps.values()
    return app


def test_flags_make_a_configuration_that_passes_the_check(place: Path) -> None:
    result = init(
        "--yes", "--repository", URL, "--branch", "main", "--app", "web", "--wsgi", "a.b:c", "--bind", "[::1]:9000",
        "--listen", "tcp:9001", "--public-url", "https://deploy.example.com/", "--state", "kept",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {path.name for path in place.iterdir()} == FILES
    settings = settings_in(place)
    app = settings.config.apps["web"]
    assert settings.warnings == ()
    assert (app.repository, app.branch, app.wsgi, app.bind, app.mode) == (URL, "main", "a.b:c", "[::1]:9000", "release")
    assert settings.config.server.listen == ("tcp:9001",)
    assert settings.config.server.public_url == "https://deploy.example.com"
    assert settings.config.state == place / "kept"
    assert CliRunner().invoke(hookdeploy, ["check"]).exit_code == 0


def test_the_secret_is_long_random_and_ours_alone(place: Path) -> None:
    """T07, T45."""
    init("--yes", "--repository", URL)
    secret = (place / "hook.secret").read_text()
    assert (place / "hook.secret").stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(secret)) == 32
    init("--yes", "--repository", URL, "--directory", "other")
    assert (place / "other" / "hook.secret").read_text() != secret


def test_it_says_exactly_what_to_paste(place: Path) -> None:
    result = init("--yes", "--repository", URL, "--public-url", "https://deploy.example.com")
    secret = (place / "hook.secret").read_text().strip()
    lines = [line.strip() for line in result.stdout.splitlines()]
    for line in (
        "Payload URL    https://deploy.example.com/hooks/github",
        "Content type   application/json",
        f"Secret         {secret}",
        "Events         Just the push event",
        f"{Path(sys.executable).with_name('hookdeploy')} check {place}/hookdeploy.toml",
    ):
        assert line in lines
    assert any(line.endswith(f"twistd -n --pidfile= hookdeploy --config {place}/hookdeploy.toml") for line in lines)
    assert secret not in (place / "hookdeploy.toml").read_text() + (place / "hookdeploy.service").read_text()


def test_json_tells_a_program_the_same(place: Path) -> None:
    result = init("--json", "--repository", URL)
    assert json.loads(result.stdout) == {
        "ok": True,
        "files": [str(place / name) for name in ("hookdeploy.toml", "hook.secret", "hookdeploy.service")],
        "payload_url": "http://<this server>:8000/hooks/github",
        "content_type": "application/json",
        "secret": (place / "hook.secret").read_text().strip(),
        "events": ["push"],
    }


# --- never overwrites


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_overwritten_without_force(place: Path, name: str) -> None:
    (place / name).write_text("mine")
    result = init("--yes", "--repository", URL)
    assert result.exit_code == 1
    assert name in result.stderr
    assert "--force" in result.stderr
    assert {path.name: path.read_text() for path in place.iterdir()} == {name: "mine"}


def test_force_overwrites_and_follows_no_link(place: Path) -> None:
    """T35: an old file's mode, or a link in its place, does not matter."""
    (place / "elsewhere").write_text("theirs")
    (place / "hook.secret").symlink_to("elsewhere")
    (place / "hookdeploy.toml").write_text("mine")
    assert init("--yes", "--force", "--repository", URL).exit_code == 0
    assert (place / "elsewhere").read_text() == "theirs"
    assert (place / "hook.secret").stat().st_mode & 0o777 == 0o600
    assert the_app(place).name == "blog"


def test_bad_flags_are_refused_before_anything_is_written(place: Path) -> None:
    for flag, value in {
        "--repository": "https://user:canary@h/a/b",
        "--branch": "a..b",
        "--app": "Big App",
        "--wsgi": "wsgi.py",
        "--bind": "8080",
        "--listen": "8000",
        "--public-url": "example.com",
        "--in-place": "nowhere",
    }.items():
        flags = {"--repository": URL, "--wsgi": "a:b", flag: value}
        if flag == "--in-place":
            del flags["--repository"]
        result = init("--yes", *(word for pair in flags.items() for word in pair))
        assert (result.exit_code, list(place.iterdir())) == (2, []), flag
        assert flag in result.stderr
        assert "canary" not in result.output
    result = init("--yes", "--repository", URL, "--wsgi", "a:b", "--bind", "127.0.0.1:8000")
    assert (result.exit_code, list(place.iterdir())) == (2, [])
    assert "is taken by server.listen[0] already" in result.stderr


def test_without_anything_to_deploy_it_is_wrong_usage(place: Path) -> None:
    result = init("--yes")
    assert result.exit_code == 2
    assert "--repository URL" in result.stderr
    assert init("--yes", "--repository", URL, "--in-place", ".").exit_code == 2


def test_a_directory_that_cannot_be_written_is_a_failure_and_no_traceback(place: Path) -> None:
    (place / "file").touch()
    result = init("--yes", "--repository", URL, "--directory", "file")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_what_the_world_still_lacks_is_said_after_writing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    result = init("--yes", "--repository", URL)
    assert result.exit_code == 1
    assert "git: is not installed" in result.stderr
    assert {path.name for path in place.iterdir()} == FILES


# --- in and around a clone


def test_inside_a_clone_everything_is_found(clone: Path) -> None:
    result = init("--yes")
    assert result.exit_code == 0, result.output
    app = the_app(clone)
    assert (app.name, app.repository, app.branch, app.wsgi) == ("blog", URL, "trunk", "wsgi:app")
    assert settings_in(clone).config.state == clone.parent / ".hookdeploy-blog"
    assert "never commit hook.secret" in result.stdout


def test_a_password_in_the_origin_stays_where_it_is(clone: Path) -> None:
    """T26."""
    subprocess.run(["git", "remote", "set-url", "origin", "https://u:canary@github.com/acme/blog.git"], check=True)
    result = init("--yes")
    assert the_app(clone).repository == URL
    assert "canary" not in result.output + (clone / "hookdeploy.toml").read_text()


def test_an_origin_that_is_a_path_becomes_a_whole_one(clone: Path) -> None:
    subprocess.run(["git", "remote", "set-url", "origin", "../origin.git"], check=True)
    assert init("--yes").exit_code == 0
    assert the_app(clone).repository == f"{clone}/../origin.git"


def test_another_repository_takes_nothing_from_the_clone_around(clone: Path) -> None:
    init("--yes", "--repository", "git@example.com:other/thing.git")
    app = the_app(clone)
    assert (app.name, app.branch, app.wsgi) == ("thing", None, None)


def test_a_clone_is_deployed_in_place(clone: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert init("--yes", "--in-place", "blog", "--directory", "config").exit_code == 0
    app = the_app(place / "config")
    assert (app.mode, app.path, app.branch, app.repository) == ("in-place", clone, "trunk", None)
    assert (app.wsgi, app.names) == ("wsgi:app", ("acme/blog",))
    assert settings_in(place / "config").config.state == place / "config" / "state"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"wsgi.py": "application = x"}, "wsgi:application"),
        ({"wsgi.py": "from site import app\n"}, "wsgi:app"),
        ({"wsgi.py": "app: Flask = x"}, "wsgi:app"),
        ({"wsgi.py": "def application(environ, start):"}, "wsgi:application"),
        ({"wsgi.py": ""}, "wsgi:application"),
        ({"app.py": "app = Flask()"}, "app:app"),
        ({"app.py": "def create_app():"}, "app:create_app()"),
        ({"app.py": "x = 1", "main.py": "app = x"}, "main:app"),
        ({"manage.py": "", "site/wsgi.py": "application = x", "app.py": "app = 1"}, "site.wsgi:application"),
        ({"site/wsgi.py": "application = x"}, None),
    ],
)
def test_the_application_is_found_in_the_usual_places(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert find_wsgi(tmp_path) == found


# --- questions


def test_questions_have_defaults(clone: Path) -> None:
    result = init(said="\n" * 8)
    assert result.exit_code == 0, result.output
    app = the_app(clone)
    assert (app.name, app.repository, app.branch, app.wsgi, app.bind) == (
        "blog",
        URL,
        "trunk",
        "wsgi:app",
        "127.0.0.1:8080",
    )


def test_a_wrong_answer_is_asked_for_again(place: Path) -> None:
    answers = ["ext::sh -c x", URL, "Blog!", "blog", "", "wsgi.py", "wsgi:app", "8080", ":80", "0.0.0.0:80", "", "", ""]
    result = init(said="".join(f"{answer}\n" for answer in answers))
    assert result.exit_code == 0, result.output
    assert "names a transport that git would run as a program" in result.output
    app = the_app(place)
    assert (app.name, app.repository, app.branch, app.wsgi, app.bind) == ("blog", URL, None, "wsgi:app", "0.0.0.0:80")


def test_without_a_server_nobody_asks_where_it_listens(place: Path) -> None:
    result = init("--repository", URL, said="\n\n-\n" + "\n" * 4)
    assert result.exit_code == 0, result.output
    assert "The app listens on" not in result.output
    assert the_app(place).wsgi is None


def test_answers_that_do_not_come_leave_nothing_behind(place: Path) -> None:
    assert init(said=f"{URL}\n").exit_code == 1
    assert list(place.iterdir()) == []


# --- the texts


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_string_survives_toml(text: str) -> None:
    assert tomllib.loads(f"x = {toml_string(text)}") == {"x": text}


ANSWERS = Answers(
    app="blog",
    repository=URL,
    in_place=None,
    branch=None,
    wsgi=None,
    bind="127.0.0.1:8080",
    listen="tcp:8000",
    public_url=None,
    state=Path("/var/lib/hookdeploy"),
)


def test_what_is_commented_out_is_good_too() -> None:
    """A newcomer takes the # away, and the file still means something."""
    text = configuration(ANSWERS)
    settings = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and " = " in line]
    assert len(settings) >= 4
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    (app,) = parse(uncommented, Path("/etc/hookdeploy")).apps.values()
    assert (app.branch, app.wsgi, app.health, app.env_file) == (
        "main",
        "wsgi:application",
        "/healthz",
        Path("/etc/hookdeploy/blog.env"),
    )
    assert ([step.argv[-2] for step in app.migrate], app.shared) == (["migrate"], ("media/",))


def test_in_place_nothing_is_offered_that_belongs_to_releases() -> None:
    assert "shared" not in configuration(replace(ANSWERS, repository=None, in_place=Path("/srv/blog")))


def lines_of_unit(answers: Answers = ANSWERS, directory: str = "/etc/hookdeploy") -> list[str]:
    config = Path(directory, "hookdeploy.toml")
    return unit(answers, config=config, twistd=Path("/opt/venv/bin/twistd"), user="deploy").splitlines()


def test_the_unit_starts_this_twistd_with_this_file() -> None:
    lines = lines_of_unit()
    start = "/opt/venv/bin/twistd -n --pidfile= hookdeploy --config /etc/hookdeploy/hookdeploy.toml"
    for line in (
        f"ExecStart={start}", "Type=simple", "User=deploy", "Restart=always", "KillMode=process",
        "RestartKillSignal=SIGQUIT", "NoNewPrivileges=true", "StateDirectory=hookdeploy", "StateDirectoryMode=0700",
    ):  # fmt: skip
        assert line in lines
    assert not any(line.startswith("AmbientCapabilities") for line in lines)


def test_odd_paths_are_quoted_for_systemd() -> None:
    lines = lines_of_unit(directory='/srv/50% "of" $it')
    assert lines_of_unit().index("Type=simple") == lines.index("Type=simple")
    assert 'WorkingDirectory=/srv/50%% "of" $it' in lines
    assert any(line.endswith('--config "/srv/50%% \\"of\\" $$it/hookdeploy.toml"') for line in lines)


def test_a_low_port_gets_its_capability() -> None:
    low = replace(ANSWERS, listen="tcp:80")
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in lines_of_unit(low)


def test_systemd_accepts_the_unit(place: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        if os.environ.get("HOOKDEPLOY_ALL_TESTS"):
            pytest.fail("systemd-analyze is not installed")
        pytest.skip("systemd-analyze is not installed")
    directory = place / "50% of it"
    init("--yes", "--repository", URL, "--directory", str(directory), "--listen", "tcp:80")
    command = [analyze, "verify", str(directory / "hookdeploy.service")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
