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

from tests import githubapi
from twisted_hook.cli import atforge, hookdeploy
from twisted_hook.cli.forge import GitHubRepository
from twisted_hook.cli.questions import find_wsgi
from twisted_hook.cli.starter import Answers, configuration, toml_string, unit
from twisted_hook.config import AppConfig, parse
from twisted_hook.configfile import Settings, load
from twisted_hook.forges import FORGES, flaw

FILES = {"hookdeploy.toml", "hook.secret", "hookdeploy.service"}
URL = "https://github.com/acme/blog.git"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that lies in no clone."""
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
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


def test_the_dashboard_is_for_this_machine_alone_and_takes_nobodys_place(place: Path) -> None:
    init("--yes", "--repository", URL)
    assert settings_in(place).config.dashboard.listen == ("tcp:8001:interface=127.0.0.1",)
    init("--yes", "--repository", URL, "--wsgi", "a:b", "--bind", "127.0.0.1:8001", "--directory", "other")
    assert settings_in(place / "other").config.dashboard.listen == ()


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
        "forge": "github",
        "files": [str(place / name) for name in ("hookdeploy.toml", "hook.secret", "hookdeploy.service")],
        "payload_url": "http://<this server>:8000/hooks/github",
        "content_type": "application/json",
        "secret": (place / "hook.secret").read_text().strip(),
        "events": ["push"],
    }


# --- other forges


@pytest.mark.parametrize(
    ("repository", "forge", "pasted"),
    [
        ("https://gitlab.com/acme/blog.git", "gitlab", ["URL ADDRESS", "Secret token SECRET", "Trigger Push events"]),
        (
            "https://codeberg.org/acme/blog.git",
            "forgejo",
            [
                "Target URL ADDRESS",
                "HTTP method POST",
                "POST content type application/json",
                "Secret SECRET",
                "Trigger on Push events",
            ],
        ),
        ("https://gitea.com/acme/blog.git", "gitea", ["Target URL ADDRESS", "Secret SECRET"]),
        ("https://bitbucket.org/acme/blog.git", "bitbucket", ["URL ADDRESS", "Triggers Repository push"]),
        ("https://bitbucket.example.com/scm/ACME/blog.git", "bitbucket-server", ["Events Repository: Push"]),
        ("https://gitlab.example.com/acme/blog.git", "gitlab", ["Secret token SECRET"]),
        ("https://github.example.com/acme/blog.git", "github", ["Payload URL ADDRESS", "Events Just the push event"]),
    ],
)
def test_the_forge_is_known_by_the_host_and_gets_a_hook_and_words_of_its_own(
    place: Path, repository: str, forge: str, pasted: list[str]
) -> None:
    result = init("--yes", "--repository", repository, "--public-url", "https://deploy.example.com")
    assert result.exit_code == 0, result.output
    (hook,) = settings_in(place).hooks
    assert (hook.forge, hook.path) == (forge, f"/hooks/{forge}")
    (subscription,) = hook.subscriptions
    assert subscription.serves("acme/blog")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    secret = (place / "hook.secret").read_text().strip()
    for line in pasted:
        assert line.replace("ADDRESS", f"https://deploy.example.com/hooks/{forge}").replace("SECRET", secret) in lines
    assert ("GitHub" in result.output) == (forge == "github")
    assert "taken for" not in result.stderr


@pytest.mark.parametrize("forge", FORGES)
def test_whatever_the_forge_what_it_signs_with_the_secret_is_believed(place: Path, forge: str) -> None:
    result = init("--json", "--repository", "https://git.example.com/acme/blog.git", "--forge", forge)
    said = json.loads(result.stdout)
    (hook,) = settings_in(place).hooks
    assert hook.keys == (said["secret"].encode(),)
    assert flaw(forge, hook.keys[0]) == ""
    assert (said["forge"], said["payload_url"]) == (forge, f"http://<this server>:8000/hooks/{forge}")
    events = {"bitbucket": ["repo:push"], "bitbucket-server": ["repo:refs_changed"]}.get(forge, ["push"])
    assert said["events"] == events


def test_a_host_that_tells_no_forge_is_asked_about(place: Path) -> None:
    repository = "https://git.example.com/acme/blog.git"
    result = init("--repository", repository, said="subversion\ngitea\n" + "\n" * 7)
    assert result.exit_code == 0, result.output
    assert "must be one of github, gitlab, gitea" in result.output
    assert settings_in(place).hooks[0].forge == "gitea"
    result = init("--yes", "--force", "--repository", repository)
    assert settings_in(place).hooks[0].forge == "github"
    assert "git.example.com is taken for GitHub's; if another forge is there: --forge NAME --force" in result.stderr
    result = init("--yes", "--force", "--repository", repository, "--forge", "github")
    assert "is taken for" not in result.output


def test_a_repository_in_a_group_of_a_group_is_served_under_its_whole_name(place: Path) -> None:
    """GitLab names it by its whole path, and a delivery for a name that nobody serves is refused."""
    assert init("--yes", "--repository", "https://gitlab.com/acme/web/blog.git").exit_code == 0
    (subscription,) = settings_in(place).hooks[0].subscriptions
    assert subscription.serves("acme/web/blog")


def test_a_clone_of_another_forge_is_deployed_in_place(clone: Path) -> None:
    subprocess.run(["git", "remote", "set-url", "origin", "https://gitlab.com/acme/web/blog.git"], check=True)
    assert init("--yes", "--in-place", ".").exit_code == 0
    (hook,) = settings_in(clone).hooks
    assert (hook.forge, hook.subscriptions[0].serves("acme/web/blog")) == ("gitlab", True)


def test_what_is_for_github_alone_is_not_taken_to_another_forge(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T07: the token is sent nowhere."""
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_canary")
    gitlab = ("--yes", "--repository", "git@gitlab.com:acme/blog.git", *PUBLIC)
    with githubapi.saying(answers()) as (api, asked):
        result = init(*gitlab, "--api", api)
        assert (result.exit_code, list(place.iterdir())) == (2, [])
        assert "GitHub alone" in result.stderr
        result = init(*gitlab)
    assert (result.exit_code, asked) == (0, [])
    assert "Settings → Repository → Deploy keys" in result.stdout
    assert "ssh may not know gitlab.com yet" in result.stdout
    assert not (home / ".ssh").exists()


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
        f"ExecStart={start}", "Type=notify", "User=deploy", "Restart=always", "KillMode=process",
        "RestartKillSignal=SIGQUIT", "NoNewPrivileges=true", "StateDirectory=hookdeploy", "StateDirectoryMode=0700",
    ):  # fmt: skip
        assert line in lines
    assert not any(line.startswith("AmbientCapabilities") for line in lines)


def test_odd_paths_are_quoted_for_systemd() -> None:
    lines = lines_of_unit(directory='/srv/50% "of" $it')
    assert lines_of_unit().index("Type=notify") == lines.index("Type=notify")
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


# --- deploy keys, and what a token saves a person

SSH_URL = "git@127.0.0.1:acme/blog.git"
PUBLIC = ("--public-url", "https://deploy.example.com")
PAYLOAD = "https://deploy.example.com/hooks/github"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ssh finds what it knows."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(atforge, "known_hosts", lambda: path / ".ssh" / "known_hosts")
    return path


def answers(**more: object) -> dict[str, object]:
    """What GitHub answers where nothing is set up yet."""
    return {
        "GET /repos/acme/blog/hooks": (200, [githubapi.webhook(6, "https://else.where/hooks/github")]),
        "POST /repos/acme/blog/hooks": (201, githubapi.webhook(7, PAYLOAD)),
        "GET /repos/acme/blog/keys": (200, []),
        "POST /repos/acme/blog/keys": (201, {"id": 1}),
        "GET /meta": (200, {**githubapi.meta(), "ssh_keys": [HOST_KEY]}),
        **more,
    }


def token_file(directory: Path) -> Path:
    path = directory / "token"
    path.touch(mode=0o600)
    path.write_text("ghp_canary\n")
    return path


def test_a_repository_over_ssh_gets_a_key_of_its_own(place: Path) -> None:
    result = init("--yes", "--repository", "git@example.com:acme/blog.git")
    assert result.exit_code == 0, result.output
    assert {path.name for path in place.iterdir()} == FILES | {"deploy_key", "deploy_key.pub"}
    assert (place / "deploy_key").stat().st_mode & 0o777 == 0o600
    assert the_app(place).deploy_key == place / "deploy_key"
    public = (place / "deploy_key.pub").read_text().strip()
    assert f"Key            {public}" in [line.strip() for line in result.stdout.splitlines()]
    asked = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", place / "deploy_key"], capture_output=True, text=True, check=True
    )
    assert asked.stdout.split()[:2] == public.split()[:2], "it has no passphrase"


def test_without_ssh_keygen_nothing_is_left_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = init("--yes", "--repository", "git@github.com:acme/blog.git", "--wsgi", "wsgi:application")
    assert result.exit_code == 1
    assert "ssh-keygen is not installed" in result.stderr
    assert list(place.iterdir()) == [], "or the next try would be refused for what is there"


def test_who_has_a_key_already_wants_no_other(place: Path) -> None:
    assert init("--yes", "--no-deploy-key", "--repository", "git@example.com:acme/blog.git").exit_code == 0
    assert {path.name for path in place.iterdir()} == FILES
    assert the_app(place).deploy_key is None


def test_a_key_is_not_overwritten_without_force(place: Path) -> None:
    (place / "deploy_key").write_text("mine")
    result = init("--yes", "--repository", "git@example.com:acme/blog.git")
    assert (result.exit_code, "deploy_key already" in result.stderr) == (1, True)
    assert {path.name: path.read_text() for path in place.iterdir()} == {"deploy_key": "mine"}
    assert init("--yes", "--force", "--repository", "git@example.com:acme/blog.git").exit_code == 0
    assert (place / "deploy_key").read_text() != "mine"


def test_over_https_a_deploy_key_is_wrong_usage(place: Path) -> None:
    result = init("--yes", "--deploy-key", "--repository", URL)
    assert (result.exit_code, list(place.iterdir())) == (2, [])
    assert "git@github.com:acme/blog.git" in result.stderr


def test_with_a_token_nothing_is_left_to_be_pasted(place: Path, home: Path) -> None:
    with githubapi.saying(answers()) as (api, asked):
        result = init(
            "--yes", "--repository", SSH_URL, *PUBLIC, "--api", api, "--token-file", str(token_file(home))
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    secret, public = (place / "hook.secret").read_text().strip(), (place / "deploy_key.pub").read_text().strip()
    made = {path: body for method, path, body in asked if method == "POST"}
    assert made["/repos/acme/blog/hooks"] == {
        "name": "web",
        "active": True,
        "events": ["push"],
        "config": {"url": PAYLOAD, "content_type": "json", "secret": secret, "insecure_ssl": "0"},
    }
    key = made["/repos/acme/blog/keys"]
    assert (key["key"], key["read_only"]) == (public, True)
    assert (home / ".ssh" / "known_hosts").read_text() == f"127.0.0.1 {HOST_KEY}\n"
    assert "the webhook was created" in result.stdout
    assert secret not in result.output
    assert "canary" not in result.output + (place / "hookdeploy.toml").read_text()


def test_a_webhook_that_is_there_gets_the_new_secret_and_no_twin(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_canary")
    there = {
        "GET /repos/acme/blog/hooks": (200, [githubapi.webhook(7, PAYLOAD)]),
        "PATCH /repos/acme/blog/hooks/7": (200, githubapi.webhook(7, PAYLOAD)),
    }
    with githubapi.saying(answers(**there)) as (api, asked):
        result = init("--json", "--no-deploy-key", "--repository", SSH_URL, *PUBLIC, "--api", api)
    assert json.loads(result.stdout)["webhook"] == "updated"
    (changed,) = [body for method, _, body in asked if method == "PATCH"]
    assert changed["config"]["secret"] == (place / "hook.secret").read_text().strip()
    assert not [path for method, path, _ in asked if method == "POST"]


def test_a_person_may_say_no_to_each_step(place: Path, home: Path) -> None:
    said = "blog\n-\n-\n\n\ny\nn\nn\nn\n"  # name, branch, wsgi, listen, state, make a key; webhook, key, host keys
    with githubapi.saying(answers()) as (api, asked):
        token = str(token_file(home))
        result = init("--repository", SSH_URL, *PUBLIC, "--api", api, "--token-file", token, said=said)
    assert result.exit_code == 0, result.output
    assert not [path for method, path, _ in asked if method != "GET"]
    assert not (home / ".ssh").exists()
    assert "Payload URL" in result.stdout
    assert "Deploy keys" in result.stdout


def test_what_github_refuses_is_said_and_can_be_pasted_instead(place: Path, home: Path) -> None:
    with githubapi.saying({"GET /meta": (200, {"ssh_keys": "none"})}) as (api, _):
        result = init(
            "--yes", "--repository", SSH_URL, *PUBLIC, "--api", api, "--token-file", str(token_file(home))
        )  # fmt: skip
    assert result.exit_code == 1
    assert "the webhook was not made: 127.0.0.1 answers 404" in result.stderr
    assert "the deploy key was not added" in result.stderr
    assert "ssh does not know the host keys" in result.stderr
    assert "Payload URL" in result.stdout
    assert {path.name for path in place.iterdir()} == FILES | {"deploy_key", "deploy_key.pub"}
    assert "canary" not in result.output


def test_with_a_token_and_without_an_address_github_is_told_nothing(place: Path, home: Path) -> None:
    with githubapi.saying(answers()) as (api, asked):
        token = str(token_file(home))
        result = init("--yes", "--no-deploy-key", "--repository", SSH_URL, "--api", api, "--token-file", token)
    assert (result.exit_code, asked) == (1, [])
    assert "--public-url" in result.stderr


def test_a_token_that_is_none_is_refused_before_anything_is_written(place: Path) -> None:
    (place / "empty").touch()
    for name in ("empty", "missing"):
        result = init("--yes", "--repository", URL, "--token-file", name)
        assert (result.exit_code, "--token-file" in result.stderr) == (2, True)
    assert [path.name for path in place.iterdir()] == ["empty"]


def test_hosts_that_ssh_knows_are_not_told_again(place: Path, home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text(f"127.0.0.1 {HOST_KEY}")
    with githubapi.saying(answers()) as (api, asked):
        assert init("--yes", "--repository", SSH_URL, "--api", api).exit_code == 0
    assert asked == []


def test_new_host_keys_begin_a_line_of_their_own(home: Path) -> None:
    known = home / "known_hosts"
    known.write_text("other.example.com ssh-ed25519 AAAA")
    with githubapi.saying(answers()) as (api, _):
        atforge.introduce("github.com", GitHubRepository("acme/blog", api=api, token=None), known)
    assert known.read_text().splitlines() == ["other.example.com ssh-ed25519 AAAA", f"github.com {HOST_KEY}"]


def test_the_unit_for_a_configuration_that_is_there_can_be_printed(place: Path) -> None:
    assert init("--print-unit").exit_code == 1
    init("--yes", "--repository", URL)
    result = init("--print-unit")
    assert (result.exit_code, result.stdout) == (0, (place / "hookdeploy.service").read_text())
