"""The configuration on a real disk: secrets, env_files, clones and the state directory, each good and bad."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.accounts import open_the_way
from twisted_hook.config import ConfigError, Mention, Mentions, NamedAccount
from twisted_hook.configfile import Settings, load, prepare_state, read_env_file
from twisted_hook.survey import Survey, check_state

SECRET = "canary-0123456789abcdef"
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
GIT_ENVIRON = {**ENVIRON, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}

RELEASE = """
state = "state"
[server]
listen = ["tcp:8000:interface=127.0.0.1"]
[hooks.github]
secrets = [{ file = "hook.secret" }]
[apps.blog]
hook = "github"
repository = "https://github.com/acme/blog.git"
"""
IN_PLACE = RELEASE.replace('repository = "https://github.com/acme/blog.git"', 'mode = "in-place"\npath = "blog"')


def git(*arguments: str | Path) -> None:
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments],
        check=True,
        capture_output=True,
        env=GIT_ENVIRON,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a secret that only we can read."""
    secret = tmp_path / "hook.secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return tmp_path


@pytest.fixture
def clone(place: Path) -> Path:
    """A clone on the branch ``trunk``, whose origin is called acme/blog."""
    origin = place / "acme" / "blog.git"
    origin.parent.mkdir()
    git("init", "-q", "--bare", "-b", "trunk", origin)
    git("clone", "-q", origin, place / "blog")
    git("-C", place / "blog", "checkout", "-q", "-B", "trunk")
    git("-C", place / "blog", "commit", "-q", "--allow-empty", "-m", "first")
    return place / "blog"


def loaded(place: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> Settings:
    (place / "hookdeploy.toml").write_text(text)
    return load(place / "hookdeploy.toml", environ)


def faults_of(place: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        loaded(place, text, environ)
    assert SECRET not in str(caught.value)
    return {fault.path: fault.message for fault in caught.value.faults}


def environment_faults(environ: Mapping[str, str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(None, {**ENVIRON, **environ})
    assert caught.value.source == "environment"
    return {fault.path: fault.message for fault in caught.value.faults}


# --- the file


def test_a_good_file_gives_hooks_with_their_secrets(place: Path) -> None:
    settings = loaded(place, RELEASE)
    (hook,) = settings.hooks
    assert (hook.name, hook.path, hook.forge) == ("github", "/hooks/github", "github")
    assert hook.keys == (SECRET.encode(),)
    assert [(app.app, app.names, app.ref) for app in hook.subscriptions] == [("blog", ("acme/blog",), None)]
    assert settings.source == place / "hookdeploy.toml"
    assert settings.warnings == ()
    assert settings.redact == (SECRET,)
    assert SECRET not in repr(settings)


def test_a_branch_becomes_the_full_name_of_its_ref(place: Path) -> None:
    settings = loaded(place, f'{RELEASE}branch = "release/1"\n')
    assert settings.hooks[0].subscriptions[0].ref == "refs/heads/release/1"


def test_without_a_path_the_file_in_the_current_directory_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("hookdeploy.toml").write_text(RELEASE)
    assert load(None, ENVIRON).source == place / "hookdeploy.toml"


def test_a_file_that_is_found_says_what_it_wins_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("hookdeploy.toml").write_text(RELEASE)
    environ = {**ENVIRON, "GITHUB_SECRET": SECRET, "REPO_PATH": "blog"}
    (warning,) = load(None, environ).warnings
    assert warning == (
        "./hookdeploy.toml is the configuration; GITHUB_SECRET, REPO_PATH in the environment: not read beside it"
    )
    assert load(Path("hookdeploy.toml"), environ).warnings == ()
    Path("hookdeploy.toml").write_text(RELEASE.replace('file = "hook.secret"', 'env = "GITHUB_SECRET"'))
    (warning,) = load(None, environ).warnings
    assert "; REPO_PATH in" in warning


def test_faults_of_the_text_and_of_the_world_come_together(place: Path) -> None:
    """P93: unknown key, wrong type, world-readable secret, missing env_file and open state directory, all at once."""
    (place / "hook.secret").chmod(0o644)
    (place / "state").mkdir()
    (place / "state").chmod(0o755)
    (place / "state" / "journal.sqlite3").touch()
    found = faults_of(place, f'{RELEASE}env_file = "no.env"\nworkers = "two"\nworker = 2\n')
    assert set(found) == {
        "hooks.github.secrets[0]",
        "state",
        "apps.blog.env_file",
        "apps.blog.workers",
        "apps.blog.worker",
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b"a = \xff"), "is not UTF-8 text (byte 4)"),
        (lambda path: path.write_bytes(b"#" * (1 << 21)), "is larger than"),
    ],
)
def test_what_is_no_readable_text_is_one_fault(place: Path, make: Callable[[Path], None], words: str) -> None:
    make(place / "x.toml")
    with pytest.raises(ConfigError, match=r"x\.toml: ") as caught:
        load(place / "x.toml", ENVIRON)
    assert words in str(caught.value)


# --- secrets


def test_a_secret_that_others_can_read_is_refused(place: Path) -> None:
    """T45, P93."""
    for mode in (0o644, 0o640, 0o604, 0o620):
        (place / "hook.secret").chmod(mode)
        found = faults_of(place, RELEASE)
        assert f"chmod 600 {place / 'hook.secret'}" in found["hooks.github.secrets[0]"]


def test_a_hook_without_a_usable_secret_stops_the_start(place: Path) -> None:
    """T07, P09: a missing file, an empty one, and variables and credentials that are not there."""
    (place / "empty").touch(mode=0o600)
    (place / "newline").touch(mode=0o600)
    (place / "newline").write_text("\n")
    (place / "credentials").mkdir()
    (place / "credentials" / "empty").touch()
    sources = [
        ('{ file = "nowhere" }', "cannot be read: No such file"),
        ('{ file = "." }', "Is a directory"),
        ('{ file = "empty" }', "is empty"),
        ('{ file = "newline" }', "is empty"),
        ('{ env = "UNSET" }', "UNSET is not set"),
        ('{ env = "EMPTY" }', "is empty"),
        ('{ credential = "nowhere" }', "cannot be read"),
        ('{ credential = "empty" }', "is empty"),
    ]
    text = RELEASE.replace('{ file = "hook.secret" }', ", ".join(source for source, _ in sources))
    found = faults_of(place, text, {**ENVIRON, "EMPTY": "", "CREDENTIALS_DIRECTORY": str(place / "credentials")})
    assert len(found) == len(sources)
    for number, (_, words) in enumerate(sources):
        assert words in found[f"hooks.github.secrets[{number}]"]
    alone = RELEASE.replace('{ file = "hook.secret" }', '{ credential = "x" }')
    assert "LoadCredential=" in faults_of(place, alone)["hooks.github.secrets[0]"]


def test_secrets_come_from_files_variables_and_credentials(place: Path) -> None:
    (place / "github").write_text("from a credential\r\n")
    text = RELEASE.replace('"hook.secret" }', '"hook.secret" }, { env = "OLD" }, { credential = "github" }')
    settings = loaded(place, text, {**ENVIRON, "OLD": "from a variable\n", "CREDENTIALS_DIRECTORY": str(place)})
    assert settings.hooks[0].keys == (SECRET.encode(), b"from a variable\n", b"from a credential")


def test_a_secret_that_could_sign_nothing_stops_the_start(place: Path) -> None:
    """Standard Webhooks and GitLab's signing tokens carry a key in base64."""
    for forge, secret in (("standard", f"whsec_{SECRET}"), ("gitlab", "whsec_"), ("standard", "no key")):
        (place / "hook.secret").write_text(secret)
        found = faults_of(place, RELEASE.replace("[hooks.github]\n", f'[hooks.github]\nforge = "{forge}"\n'))
        assert "no signing secret" in found["hooks.github.secrets[0]"]
    (place / "hook.secret").unlink()
    found = faults_of(place, RELEASE.replace("[hooks.github]\n", '[hooks.github]\nforge = "standard"\n'))
    assert "no signing secret" not in found["hooks.github.secrets[0]"]


def test_a_short_secret_warns_and_is_not_shown(place: Path) -> None:
    """T07."""
    (place / "hook.secret").write_text("canary")
    (warning,) = loaded(place, RELEASE).warnings
    assert "hooks.github.secrets[0]" in warning
    assert "6 bytes" in warning
    assert "canary" not in warning


def test_the_secret_of_an_app_makes_a_hook(place: Path) -> None:
    settings = loaded(place, RELEASE.replace('hook = "github"', 'secret = { file = "hook.secret" }'))
    assert [hook.path for hook in settings.hooks] == ["/hooks/github", "/hooks/blog"]
    assert settings.warnings == ("hooks.github: no app uses it",)


def test_the_two_variables_of_the_quick_start_warn_once_of_the_plain_door(clone: Path) -> None:
    environ = {**ENVIRON, "GITHUB_SECRET": SECRET, "REPO_PATH": str(clone)}
    (warning,) = load(None, environ).warnings
    assert warning.startswith("HOOK_LISTEN: tcp:8000 is plain HTTP")
    assert load(None, {**environ, "HOOK_LISTEN": "tcp:8000:interface=127.0.0.1"}).warnings == ()


def test_who_may_deliver_reaches_the_hook(place: Path) -> None:
    [hook] = loaded(place, RELEASE.replace("[apps.blog]", 'only_from = ["github", "10.0.0.0/8"]\n[apps.blog]')).hooks
    assert (hook.networks, hook.published) == ((ip_network("10.0.0.0/8"),), True)
    [hook] = loaded(place, RELEASE).hooks
    assert (hook.networks, hook.published) == ((), False)


def test_a_secret_that_is_there_twice_warns(place: Path) -> None:
    """Who meant to change it has not; every key path is named, and nothing of the secret is."""
    text = RELEASE.replace("}]", '}, { env = "OTHER" }, { env = "SAME" }]')
    (warning,) = loaded(place, text, {**ENVIRON, "OTHER": "x" * 32, "SAME": SECRET}).warnings
    assert warning.startswith("hooks.github.secrets[2]: is the same secret as hooks.github.secrets[0]")
    assert SECRET not in warning


def test_an_app_may_have_two_secrets_of_its_own(place: Path) -> None:
    text = RELEASE.replace('hook = "github"', 'secret = [{ file = "hook.secret" }, { env = "NEW" }]')
    [_, hook] = loaded(place, text, {**ENVIRON, "NEW": "x" * 32}).hooks
    assert (hook.name, hook.keys) == ("blog", (SECRET.encode(), b"x" * 32))
    assert "apps.blog.secret[1]" in faults_of(place, text)


# --- tokens

TOKEN = "canary-token-of-the-forge"
WITH_TOKEN = RELEASE.replace("[apps.blog]", 'token = { file = "github.token" }\n[apps.blog]')


@pytest.fixture
def token(place: Path) -> Path:
    """A file with a token that only we can read."""
    file = place / "github.token"
    file.touch(mode=0o600)
    file.write_text(f" {TOKEN}\n")
    return file


def test_a_token_is_known_by_the_name_of_its_hook_and_shown_by_nothing(place: Path, token: Path) -> None:
    settings = loaded(place, f'{WITH_TOKEN}\n[hooks.other]\nsecrets = [{{ file = "hook.secret" }}]\n')
    assert settings.tokens == {"github": TOKEN}
    assert set(settings.redact) == {SECRET, TOKEN}
    assert TOKEN not in repr(settings)
    assert settings.warnings == ("hooks.other: no app uses it",)
    assert loaded(place, RELEASE).tokens == {}


def test_a_token_comes_from_a_variable_or_a_credential_too(place: Path) -> None:
    (place / "github").write_text(f"{TOKEN}\r\n")
    for source in ('{ env = "GITHUB_TOKEN" }', '{ credential = "github" }'):
        environ = {**ENVIRON, "GITHUB_TOKEN": f"{TOKEN}\n", "CREDENTIALS_DIRECTORY": str(place)}
        text = WITH_TOKEN.replace('{ file = "github.token" }', source)
        assert loaded(place, text, environ).tokens == {"github": TOKEN}


def test_a_token_that_others_can_read_is_refused(place: Path, token: Path) -> None:
    """T45."""
    for mode in (0o644, 0o640, 0o604, 0o620):
        token.chmod(mode)
        assert f"chmod 600 {token}" in faults_of(place, WITH_TOKEN)["hooks.github.token"]


def test_a_token_that_cannot_be_had_stops_the_start(place: Path, token: Path) -> None:
    for source, words in {
        '{ file = "nowhere" }': "cannot be read: No such file",
        '{ file = "." }': "Is a directory",
        '{ env = "UNSET" }': "UNSET is not set",
        '{ env = "EMPTY" }': "is empty: remove this key",
        '{ credential = "x" }': "LoadCredential=",
    }.items():
        text = WITH_TOKEN.replace('{ file = "github.token" }', source)
        assert words in faults_of(place, text, {**ENVIRON, "EMPTY": ""})["hooks.github.token"], source


@pytest.mark.parametrize(
    "content", [b"canary two", b"canary\nX-Header: x", b"canar\xff", b"canary\x00", b" \n", b"\xc3\xbc"]
)
def test_a_token_is_one_word_as_it_becomes_part_of_a_header(place: Path, token: Path, content: bytes) -> None:
    token.write_bytes(content)
    message = faults_of(place, WITH_TOKEN)["hooks.github.token"]
    assert "is no token" in message
    assert "canar" not in message


def test_an_address_at_which_nothing_can_be_asked_warns(place: Path) -> None:
    text = RELEASE.replace("[apps.blog]", 'api = "https://github.example.com/api/v3"\n[apps.blog]')
    (warning,) = loaded(place, text).warnings
    assert warning == "hooks.github.api: nothing is asked there without a token"


def test_a_list_of_senders_that_nobody_can_be_on_warns(place: Path) -> None:
    """Behind a proxy on this machine every sender has the proxy's address, or none."""
    listed = RELEASE.replace("[apps.blog]", 'only_from = ["github"]\n[apps.blog]')
    (warning,) = loaded(place, listed).warnings
    assert warning.startswith("hooks.github.only_from: at tcp:8000:interface=127.0.0.1 no sender's own address is seen")
    for door in ("unix:/run/hook.sock", "tcp6:8000:interface=\\\\:\\\\:1"):
        (warning,) = loaded(place, listed.replace("tcp:8000:interface=127.0.0.1", door)).warnings
        assert "server.trusted_proxies" in warning
    for other in (
        listed.replace("[hooks", 'trusted_proxies = ["127.0.0.1/32"]\n[hooks', 1),
        listed.replace('"github"]', '"127.0.0.0/8"]'),
        listed.replace("tcp:8000:interface=127.0.0.1", "tcp:8000:interface=192.168.0.1"),
        listed.replace("[apps.blog]", 'api = "https://github.example.com/api/v3"\n[apps.blog]').replace(
            "127.0.0.1", "192.168.0.1"
        ),
        RELEASE,
    ):
        assert loaded(place, other).warnings == (), other


def test_a_journal_that_forgets_before_a_forge_stops_repeating_warns(place: Path) -> None:
    (warning,) = loaded(place, RELEASE.replace("[hooks", 'history = "71h"\n[hooks')).warnings
    assert warning.startswith("server.history: a forge may deliver a push again for three days")
    assert loaded(place, RELEASE.replace("[hooks", 'history = "3d"\n[hooks')).warnings == ()


def test_a_pattern_of_tags_reaches_the_hook(place: Path) -> None:
    [subscription] = loaded(place, f'{RELEASE}tag = "v*"\n').hooks[0].subscriptions
    assert (subscription.ref, subscription.tag) == (None, "v*")


# --- what must not be shown


def test_all_that_is_secret_is_to_be_masked(place: Path) -> None:
    (place / "blog.env").touch(mode=0o600)
    (place / "blog.env").write_text("A=long enough\nB=short\n")
    env = 'env = { API_TOKEN = "a token of mine", DEBUG = "not secret at all", DB_PASSWORD = "short" }'
    step = 'build = [{ run = "x", env = { npm_key = "the npm key" } }]'
    migrate = 'migrate = [{ run = "x", env = { DB_PASSWORD = "of the database" } }]'
    settings = loaded(place, f'{RELEASE}env_file = "blog.env"\n{env}\n{step}\n{migrate}\n')
    assert set(settings.redact) == {SECRET, "long enough", "a token of mine", "the npm key", "of the database"}


def test_a_password_in_the_origin_of_a_clone_is_to_be_masked(clone: Path) -> None:
    """T26: the clone is the user's, and its origin may hold a token."""
    for url, secret in {
        "https://bot:canary-password@example.com/acme/blog.git": "canary-password",
        "https://canary-token@example.com/acme/blog.git": "canary-token",
    }.items():
        git("-C", clone, "remote", "set-url", "origin", url)
        settings = loaded(clone.parent, IN_PLACE)
        assert secret in settings.redact
        assert settings.config.apps["blog"].names == ("acme/blog",)


def test_a_readable_file_with_secrets_warns(place: Path) -> None:
    text = f'{RELEASE}env = {{ API_TOKEN = "a token of mine" }}\n'
    (place / "hookdeploy.toml").touch()
    (place / "hookdeploy.toml").chmod(0o644)
    assert "chmod 600" in loaded(place, text).warnings[0]
    (place / "hookdeploy.toml").chmod(0o600)
    assert loaded(place, text).warnings == ()


def test_a_step_that_wants_a_shell_warns(place: Path) -> None:
    text = f'{RELEASE}build = ["make && make install", {{ run = "a && b", shell = true }}]\n'
    (warning,) = loaded(place, text).warnings
    assert warning.startswith('apps.blog.build[0]: "&&"')
    (warning,) = loaded(place, f'{RELEASE}migrate = ["a", "b | c"]\n').warnings
    assert warning.startswith('apps.blog.migrate[1]: "|"')
    (warning,) = loaded(place, f'{RELEASE}command = "serve {{fd}} > log"\nbind = "127.0.0.1:8080"\n').warnings
    assert warning.startswith('apps.blog.command: ">"')


# --- env_file


def test_an_env_file_is_lines_of_key_and_value(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text(
        "# comment\n\nA=1\nexport B = two words # comment\nC='single $A'\n"
        'D="double\\nline"\nE=\nF=$A ${HOME}\nG=a#b\nH="x\ny"\n'
    )
    assert read_env_file(path) == {
        "A": "1",
        "B": "two words",
        "C": "single $A",
        "D": "double\nline",
        "E": "",
        "F": "$A ${HOME}",
        "G": "a#b",
        "H": "x\ny",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("A=1\n\nnonsense canary\n", "line 3 is not KEY=value"),
        ("A='canary\n", "line 1 is not KEY=value"),
        ("A-B=canary\n", 'line 1: "A-B" is not the name of an environment variable'),
        ("\nHOOKDEPLOY_APP=canary\n", 'line 2: "HOOKDEPLOY_APP" is set by hookdeploy itself'),
        ("=canary\n", "line 1 is not KEY=value"),
        ("A=\0\n", "NUL"),
        ("A=\udcff\n", "is not UTF-8 text"),
    ],
)
def test_a_malformed_env_file_is_a_fault_that_names_the_line_only(place: Path, content: str, words: str) -> None:
    (place / "x.env").write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError) as caught:
        read_env_file(place / "x.env")
    assert str(caught.value).startswith(f"{place / 'x.env'}: ")
    assert words in str(caught.value)
    found = faults_of(place, f'{RELEASE}env_file = "x.env"\n')
    assert words in found["apps.blog.env_file"]
    assert "canary" not in found["apps.blog.env_file"]


def test_an_env_file_that_has_gone_is_a_config_error(tmp_path: Path) -> None:
    """It is read again at every deployment, when it may be gone."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_env_file(tmp_path / "gone.env")


def test_an_env_file_that_others_can_read_warns(place: Path) -> None:
    (place / "x.env").touch()
    (place / "x.env").chmod(0o644)
    assert "can be read by others" in loaded(place, f'{RELEASE}env_file = "x.env"\n').warnings[0]


# --- git


def test_a_machine_without_git_is_a_fault(place: Path) -> None:
    """P93."""
    assert "is not installed" in faults_of(place, RELEASE, {**ENVIRON, "PATH": str(place)})["git"]


@pytest.mark.parametrize(("version", "good"), [("2.30.9", False), ("2.31.0", True), ("3.0", True), ("1.99", False)])
def test_git_must_be_new_enough(place: Path, version: str, good: bool) -> None:
    fake = place / "git"
    fake.write_text(f"#!/bin/sh\necho 'git version {version} (Apple Git-1)'\n")
    fake.chmod(0o755)
    environ = {**ENVIRON, "PATH": str(place)}
    if good:
        loaded(place, RELEASE, environ)
    else:
        found = faults_of(place, RELEASE, environ)["git"]
        assert version.rpartition(".")[0] in found or version in found
        assert "2.31 or newer" in found


# --- clones


def test_a_clone_tells_its_branch_and_its_name(clone: Path) -> None:
    settings = loaded(clone.parent, IN_PLACE)
    app = settings.config.apps["blog"]
    assert (app.branch, app.names, app.wsgi, app.path) == ("trunk", ("acme/blog",), None, clone)
    (subscription,) = settings.hooks[0].subscriptions
    assert (subscription.ref, subscription.names) == ("refs/heads/trunk", ("acme/blog",))


def test_what_is_configured_counts_more_than_what_the_clone_says(clone: Path) -> None:
    settings = loaded(clone.parent, f'{IN_PLACE}branch = "live"\nnames = ["other/name"]\n')
    assert (settings.config.apps["blog"].branch, settings.config.apps["blog"].names) == ("live", ("other/name",))


def test_a_detached_head_needs_a_branch(clone: Path) -> None:
    git("-C", clone, "checkout", "-q", "--detach")
    assert "detached HEAD" in faults_of(clone.parent, IN_PLACE)["apps.blog.path"]
    assert loaded(clone.parent, f'{IN_PLACE}branch = "trunk"\n').config.apps["blog"].branch == "trunk"


def test_a_clone_without_an_origin_is_a_fault(clone: Path) -> None:
    git("-C", clone, "remote", "remove", "origin")
    assert "no remote named origin" in faults_of(clone.parent, IN_PLACE)["apps.blog.path"]


def test_what_is_no_clone_is_a_fault(clone: Path) -> None:
    (clone / "sub").mkdir()
    (clone.parent / "plain").mkdir()
    (clone.parent / "file").touch()
    for path, words in {
        "nowhere": "does not exist",
        "file": "is not a directory",
        "plain": "is not a git clone",
        "blog/sub": "name its top directory",
        "acme/blog.git": "is not a git clone",
    }.items():
        found = faults_of(clone.parent, IN_PLACE.replace('path = "blog"', f'path = "{path}"'))
        assert words in found["apps.blog.path"]


def test_git_variables_of_ours_do_not_reach_git(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P62."""
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert loaded(clone.parent, IN_PLACE).config.apps["blog"].branch == "trunk"


def test_a_clone_behind_a_link_is_a_clone(clone: Path) -> None:
    (clone.parent / "link").symlink_to(clone)
    settings = loaded(clone.parent, IN_PLACE.replace('path = "blog"', 'path = "link"'))
    assert settings.config.apps["blog"].branch == "trunk"


# --- the environment


def test_the_environment_is_enough(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.parent)
    (clone / "wsgi.py").touch()
    settings = load(None, {**ENVIRON, "GITHUB_SECRET": SECRET, "REPO_PATH": "blog"})
    app = settings.config.apps["blog"]
    assert (app.wsgi, app.branch, app.names, app.path) == ("wsgi:application", "trunk", (), clone)
    assert settings.config.state == clone.parent / ".hookdeploy-blog"
    assert (settings.hooks[0].path, settings.hooks[0].keys) == ("/github", (SECRET.encode(),))
    assert (settings.source, settings.redact) == (None, (SECRET,))
    assert (app.poll, dict(settings.tokens)) == (300.0, {})
    assert SECRET not in repr(settings)


def test_without_wsgi_py_there_is_no_server(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.parent)
    environ = {**ENVIRON, "GITHUB_SECRET": SECRET, "REPO_PATH": str(clone)}
    assert load(None, environ).config.apps["blog"].wsgi is None
    assert load(None, {**environ, "APP_MODULE": "web:app"}).config.apps["blog"].wsgi == "web:app"


def test_faults_of_the_environment_and_of_the_world_come_together(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P09."""
    monkeypatch.chdir(clone.parent)
    found = environment_faults({"GITHUB_SECRET": "", "REPO_PATH": "nowhere", "HOOK_LISTEN": "8000"})
    assert set(found) == {"GITHUB_SECRET", "REPO_PATH", "HOOK_LISTEN"}
    inside = {"GITHUB_SECRET": SECRET, "REPO_PATH": "blog", "HOOKDEPLOY_STATE": "blog/state"}
    assert "inside the deployed clone" in environment_faults(inside)["HOOKDEPLOY_STATE"]


# --- the account of an app

NOBODY = pwd.getpwuid(65534)
"""An account that every machine has."""


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run anything as somebody else")


@pytest.fixture
def nobody(root: None) -> Iterator[Callable[[], None]]:
    """Becomes the user nobody for the rest of the test, since root may do everything."""
    yield lambda: os.seteuid(NOBODY.pw_uid)
    os.seteuid(0)


def surveyed(name: str, state: Path | None = None) -> Survey:
    survey = Survey(ENVIRON)
    survey.look(Mentions(Mention("state", state) if state else None, accounts=(NamedAccount("apps.blog.user", name),)))
    return survey


def test_an_account_is_refused_where_hookdeploy_is_not_root(nobody: Callable[[], None]) -> None:
    nobody()
    (fault,) = surveyed("root").faults
    assert fault.path == "apps.blog.user"
    assert fault.message.startswith(f'needs root: hookdeploy runs as {NOBODY.pw_name}, who can run nothing as "root"')


@pytest.mark.parametrize("name", ["no such account", "-", "../root", "65534"])
def test_an_account_that_is_not_on_this_machine_is_named(root: None, place: Path, name: str) -> None:
    found = faults_of(place, f'{RELEASE}user = "{name}"\nworkers = "two"\n')
    assert found["apps.blog.user"] == f"there is no account {name!r} on this machine"
    assert set(found) == {"apps.blog.user", "apps.blog.workers"}


def test_what_the_account_cannot_reach_is_a_warning(root: None, place: Path) -> None:
    open_the_way(place)
    state = place / "closed" / "state"
    state.parent.mkdir(mode=0o700)
    told = [warning for warning in surveyed(NOBODY.pw_name, state).warnings if str(state) in warning]
    assert told == [
        f'apps.blog.user: "{NOBODY.pw_name}" cannot enter {state.parent}, and needs {state}: chmod o+x {state.parent}'
    ]
    for mode, owner, group in ((0o701, 0, 0), (0o710, 0, NOBODY.pw_gid), (0o700, NOBODY.pw_uid, 0)):
        state.parent.chmod(mode)
        os.chown(state.parent, owner, group)
        assert not any(str(state) in warning for warning in surveyed(NOBODY.pw_name, state).warnings)
    state.parent.chmod(0o700)
    assert not any(str(state) in warning for warning in surveyed("root", state).warnings)


def test_the_account_may_pass_to_its_own_app_and_no_further(root: None, place: Path) -> None:
    """The state directory is closed otherwise, and nothing could be run in a release."""
    state = place / "state"
    settings = loaded(place, f'{RELEASE}user = "{NOBODY.pw_name}"\n')
    prepare_state(state, settings.config.apps.values())
    assert loaded(place, RELEASE).config.state == state
    modes = {path.name: path.stat().st_mode & 0o777 for path in (state, *state.iterdir(), state / "apps" / "blog")}
    assert modes == {"state": 0o711, "apps": 0o711, "mirrors": 0o700, "logs": 0o700, "blog": 0o710}
    own = (state / "apps" / "blog").stat()
    assert (own.st_uid, own.st_gid) == (0, NOBODY.pw_gid)
    prepare_state(state)
    assert [path.stat().st_mode & 0o777 for path in (state, state / "apps")] == [0o711, 0o711], "its server may run"


# --- the state directory


def test_the_state_directory_is_made_for_us_alone(place: Path) -> None:
    state = place / "deep" / "state"
    prepare_state(state)
    prepare_state(state)
    for path in (state, state / "mirrors", state / "apps", state / "logs"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_cannot_be_made_is_a_config_error(place: Path) -> None:
    (place / "state").mkdir(mode=0o700)
    (place / "state" / "apps").touch()
    with pytest.raises(ConfigError, match=r"state: .* cannot be made: File exists"):
        prepare_state(place / "state")


def test_checking_makes_nothing(place: Path) -> None:
    loaded(place, RELEASE)
    assert not (place / "state").exists()


def test_an_empty_state_directory_is_closed_when_it_is_taken(place: Path) -> None:
    (place / "state").mkdir()
    (place / "state").chmod(0o755)
    loaded(place, RELEASE)
    prepare_state(place / "state")
    assert (place / "state").stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_is_open_to_others_is_refused(place: Path) -> None:
    """T35."""
    (place / "state" / "apps").mkdir(parents=True)
    for mode in (0o755, 0o770, 0o701):
        (place / "state").chmod(mode)
        assert f"chmod 700 {place / 'state'}" in faults_of(place, RELEASE)["state"]
    with pytest.raises(ConfigError, match=r"state: .* chmod 700"):
        prepare_state(place / "state")


def test_a_state_directory_that_cannot_be_is_refused(place: Path) -> None:
    """P93."""
    (place / "file").touch()
    (place / "link").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    for path, words in {
        "file": "is not a directory",
        "file/state": "",
        "link": "is a link to nowhere",
        "loop": "",
        "x" * 300: "File name too long",
    }.items():
        assert words in faults_of(place, RELEASE.replace('"state"', f'"{path}"'))["state"]


def test_a_state_directory_inside_a_served_clone_is_refused(clone: Path) -> None:
    for path in ("blog", "blog/.state", "blog/x/../state"):
        found = faults_of(clone.parent, IN_PLACE.replace('"state"', f'"{path}"'))
        assert "inside the deployed clone" in found["state"]


def test_a_state_directory_that_is_not_ours_to_use_is_refused(place: Path, nobody: Callable[[], None]) -> None:
    """P93: ours but not writable, somebody else's, or not to be made."""
    open_the_way(place)
    (place / "root").mkdir(mode=0o700)
    (place / "locked").mkdir()
    os.chown(place / "locked", 65534, -1)
    (place / "locked").chmod(0o500)
    nobody()
    for path, words in {
        "root": "belongs to root: chown nobody",
        "locked": "is not writable: chmod 700",
        "new": "is not writable; sudo install -d -m 700 -o nobody",
        "root/new": "Permission denied",
    }.items():
        with pytest.raises((ValueError, OSError), match=words):
            check_state(place / path)
