"""``hookdeploy secret``: the next secret of a hook is written beside the others, or nothing is changed at all."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.accounts import NEEDS_ROOT, NOBODY, open_the_way
from twisted_hook.cli import hookdeploy, rotation, secret
from twisted_hook.config import HookConfig, parse
from twisted_hook.configfile import load
from twisted_hook.forges import flaw

OLD = "x" * 32
TEXT = """\
# The first line.
state = "state"
[server]
listen = ["tcp:8000:interface=127.0.0.1"]   # behind a proxy

[hooks.github]  # POST /hooks/github
secrets = [{ file = "hook.secret" }]  # the present one
allow_sha1 = false

[apps.blog]
hook   =   "github"
repository = "https://github.com/acme/blog.git"
# The last line."""
OWN = TEXT.replace('hook   =   "github"', 'secret = { file = "hook.secret" }  # its own')


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a configuration and its secret."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hook.secret").touch(mode=0o600)
    (tmp_path / "hook.secret").write_text(f"{OLD}\n")
    (tmp_path / "hookdeploy.toml").write_text(TEXT)
    return tmp_path


def new(*words: str) -> Result:
    result = CliRunner().invoke(hookdeploy, ["secret", "new", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def snapshot(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


def refused(place: Path, *words: str, code: int = 1) -> str:
    """What a refusal says, after which everything must be as it was."""
    before = snapshot(place)
    result = new(*words)
    assert result.exit_code == code, result.output
    assert snapshot(place) == before
    return result.stderr


# --- what is written


def test_a_new_secret_stands_behind_the_old_one_and_nothing_else_is_changed(place: Path) -> None:
    """Last, because ``hookdeploy send`` signs with the first, which the running server knows."""
    (place / "hookdeploy.toml").chmod(0o640)
    result = new("github")
    assert result.exit_code == 0, result.output
    file = place / "github.secret.2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}\n", file.read_text())
    assert (place / "hookdeploy.toml").read_text() == TEXT.replace(
        '[{ file = "hook.secret" }]', '[{ file = "hook.secret" }, { file = "github.secret.2" }]'
    )
    assert stat.S_IMODE((place / "hookdeploy.toml").stat().st_mode) == 0o640
    [hook] = load(place / "hookdeploy.toml", os.environ).hooks
    assert hook.keys == (OLD.encode(), file.read_text().strip().encode())
    assert sorted(snapshot(place)) == ["github.secret.2", "hook.secret", "hookdeploy.toml"]


def test_it_says_what_to_do_next_in_an_order_that_refuses_no_delivery(place: Path) -> None:
    said = new("github").stdout
    places = [
        said.index(words)
        for words in (
            "Let the server read it",
            "its next start",
            "At GitHub, under Settings",
            "hookdeploy status",
            "Then",
        )
    ]
    assert places == sorted(places)
    assert (place / "github.secret.2").read_text().strip() in said
    assert OLD not in said
    assert f"remove the old one (file {place / 'hook.secret'})" in said


def test_in_json_it_is_one_object(place: Path) -> None:
    told = json.loads(new("github", "--json").stdout)
    assert told == {
        "ok": True,
        "hook": "github",
        "file": str(place / "github.secret.2"),
        "config": str(place / "hookdeploy.toml"),
        "url": "/hooks/github on tcp:8000:interface=127.0.0.1",
        "secret": (place / "github.secret.2").read_text().strip(),
    }


def test_a_third_one_follows_and_a_file_that_is_there_is_never_overwritten(place: Path) -> None:
    (place / "github.secret.3").write_text("mine")
    (place / "github.secret.4").symlink_to("nowhere")
    assert new("github").exit_code == new("github").exit_code == 0
    assert (place / "github.secret.3").read_text() == "mine"
    [hook] = parse((place / "hookdeploy.toml").read_text(), place).hooks
    assert [source.file and source.file.name for source in hook.secrets] == [
        "hook.secret",
        "github.secret.2",
        "github.secret.5",
    ]


def test_the_secret_of_an_apps_own_becomes_a_list(place: Path) -> None:
    (place / "hookdeploy.toml").write_text(OWN)
    assert new("blog").exit_code == new("blog").exit_code == 0
    hook = load(place / "hookdeploy.toml", os.environ).hooks[1]
    assert (hook.name, len(set(hook.keys)), hook.keys[0]) == ("blog", 3, OLD.encode())
    text = (place / "hookdeploy.toml").read_text()
    assert "# its own" in text
    assert text.startswith(OWN.partition("secret = ")[0])
    assert text.endswith(OWN.rpartition("# its own")[2])


@pytest.mark.parametrize(
    "written",
    [
        'secrets = [\n  { file = "hook.secret" },  # the present one\n  # and more\n]',
        'secrets = [\n\t{ file = "hook.secret" }\n]',
        'secrets = [{ file = "hook.secret" },]',
        'secrets = [ # these\n  { file = "hook.secret" }  # the present one\n  # { env = "OLDER" }\n]',
        'path = "/x"\n[[hooks.github.secrets]]\nfile = "hook.secret"  # the present one',
        'secrets = [{ env = "NOT_HERE" }]',
        '"secrets" = [{ "file" = \'hook.secret\' }]',
    ],
)
def test_whichever_way_it_is_written_the_rest_stays(place: Path, written: str) -> None:
    text = TEXT.replace('secrets = [{ file = "hook.secret" }]  # the present one\nallow_sha1 = false', written)
    (place / "hookdeploy.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert new("github").exit_code == 0
    after = (place / "hookdeploy.toml").read_bytes()
    assert after.startswith(b"\xef\xbb\xbf# The first line.\r\n")
    assert after.endswith(b"# The last line.")
    for comment in re.findall("#.*", written):
        assert comment.encode() in after
    [hook] = parse(after.decode("utf-8-sig"), place).hooks
    assert [source.file for source in hook.secrets][1:] == [place / "github.secret.2"]


def test_a_table_of_its_own_for_the_secret_becomes_a_list(place: Path) -> None:
    text = OWN.replace('secret = { file = "hook.secret" }  # its own\n', "")
    text = f'{text}\n[apps.blog.env]\nA = "1"\n[apps.blog.secret]\nfile = "hook.secret"\n'
    (place / "hookdeploy.toml").write_text(text)
    assert new("blog").exit_code == 0
    app = load(place / "hookdeploy.toml", os.environ)
    assert (len(app.hooks[1].keys), dict(app.config.apps["blog"].env)) == (2, {"A": "1"})


@pytest.mark.parametrize(
    ("forge", "present", "signing"),
    [
        ("github", OLD, False),
        ("standard", "whsec_" + "A" * 32, True),
        ("gitlab", OLD, False),
        ("gitlab", "whsec_" + "A" * 32, True),
        ("bitbucket-server", OLD, False),
    ],
)
def test_it_is_of_the_kind_that_the_forge_wants(place: Path, forge: str, present: str, signing: bool) -> None:
    (place / "hook.secret").write_text(present)
    (place / "hookdeploy.toml").write_text(TEXT.replace("allow_sha1 = false", f'forge = "{forge}"'))
    said = new("github")
    made = (place / "github.secret.2").read_text().strip()
    assert made.startswith("whsec_") == signing
    assert flaw(forge, made.encode()) == ""
    assert ("Signing" in said.stdout) == signing


def test_behind_a_link_the_file_is_changed_and_the_link_stays(place: Path) -> None:
    """It may be started by either name, and relative paths begin at the one that was given."""
    (place / "real").mkdir()
    (place / "hookdeploy.toml").rename(place / "real/hookdeploy.toml")
    (place / "hookdeploy.toml").symlink_to("real/hookdeploy.toml")
    assert new("github").exit_code == 0
    assert (place / "hookdeploy.toml").is_symlink()
    [hook] = load(place / "hookdeploy.toml", os.environ).hooks
    assert len(hook.keys) == 2
    [hook_config] = parse((place / "real/hookdeploy.toml").read_text(), place / "real").hooks
    assert hook_config.secrets[1].file == place / "github.secret.2"


def test_two_at_once_come_one_after_the_other(place: Path) -> None:
    command = [sys.executable, "-c", "from twisted_hook.cli import main; main()", "secret", "new", "github", "--json"]
    both = [subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [json.loads(each.communicate(timeout=100)[0]) for each in both]
    [hook] = load(place / "hookdeploy.toml", os.environ).hooks
    assert set(hook.keys) == {OLD.encode(), *(each["secret"].encode() for each in told)}
    assert len(hook.keys) == 4


# --- what is refused, and changes nothing


def test_an_unknown_hook_is_told_with_what_is_near(place: Path) -> None:
    assert "there is no hook githab; did you mean github?" in refused(place, "githab", code=2)
    assert "is reached by the hook github: hookdeploy secret new github" in refused(place, "blog", code=2)


def test_the_environment_has_room_for_one_secret_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SECRET", OLD)
    (place / "hookdeploy.toml").unlink()
    assert "hookdeploy init writes a file" in refused(place, "github", code=2)


def test_a_configuration_that_is_not_good_is_left_alone(place: Path) -> None:
    (place / "hookdeploy.toml").write_text(TEXT.replace("allow_sha1 = false", "allow_sha1 = 5"))
    assert "hooks.github.allow_sha1: must be true or false" in refused(place, "github")
    (place / "hookdeploy.toml").write_bytes(b"\xff")
    assert "is not UTF-8" in refused(place, "github")
    assert "cannot be read" in refused(place, "github", "--config", "nowhere.toml")


def test_what_would_mean_something_else_is_not_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(document: dict[str, Any], hook: HookConfig, file: str) -> None:
        document["hooks"][hook.name]["secrets"] = [{"file": file}]

    monkeypatch.setattr(rotation, "_add", add)
    assert "hooks.github.secrets cannot be added to here, and is left as it is. By hand" in refused(place, "github")


@contextmanager
def being_nobody() -> Iterator[None]:
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(bool(NEEDS_ROOT), reason=NEEDS_ROOT)
@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o755, "github.secret.2 cannot be written: Permission denied"), (0o777, "hookdeploy.toml belongs to the user 0")],
)
def test_who_may_not_write_there_is_told_and_leaves_nothing(place: Path, mode: int, said: str) -> None:
    open_the_way(place)
    place.chmod(mode)
    before = snapshot(place)
    with being_nobody():
        result = new("github")
    assert (result.exit_code, snapshot(place)) == (1, before)
    assert said in result.stderr


def test_nothing_is_left_behind_where_the_configuration_cannot_be_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    assert "hookdeploy.toml cannot be written: No space left" in refused(place, "github")


def test_a_file_that_was_changed_meanwhile_is_left_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = TEXT + "\n# edited\n"
    monkeypatch.setattr(secret, "with_secret", editing(place, edited))
    result = new("github")
    assert result.exit_code == 1
    assert "was changed meanwhile" in result.stderr
    assert snapshot(place) == {"hookdeploy.toml": edited.encode(), "hook.secret": f"{OLD}\n".encode()}


def editing(place: Path, text: str) -> Callable[..., str]:
    """As the real one, while somebody saves the file in an editor."""

    def with_secret(*given: object) -> str:
        (place / "hookdeploy.toml").write_text(text)
        return rotation.with_secret(*given)  # type: ignore[arg-type]

    return with_secret


@pytest.mark.skipif(bool(NEEDS_ROOT), reason=NEEDS_ROOT)
def test_the_server_can_read_what_root_has_written_for_it(place: Path) -> None:
    (place / "state").mkdir()
    os.chown(place / "state", 65534, 65534)
    os.chown(place / "hookdeploy.toml", 1, 65534)
    assert new("github").exit_code == 0
    assert (place / "github.secret.2").stat().st_uid == 65534
    status = (place / "hookdeploy.toml").stat()
    assert (status.st_uid, status.st_gid) == (1, 65534)


# --- whatever stands in the file


COMMENTS = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20)


@given(COMMENTS, COMMENTS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_comment_and_every_blank_stays(first: str, second: str, newline: str, several: bool) -> None:
    """The text with the new secret cut out is the text as it was."""
    more = ', { env = "A" }' if several else ""
    text = f"#{first}\n{TEXT.replace(' }]', f' }}{more} ]')}#{second}\n".replace("\n", newline)
    base = Path("/etc/hookdeploy")
    [hook] = parse(text, base).hooks
    written = rotation.with_secret(text, base, hook, "new")
    added = set(written.splitlines()) - set(text.splitlines())
    assert len(added) == 1
    assert 'file = "new"' in added.pop()
    assert len(written.splitlines()) == len(text.splitlines())
