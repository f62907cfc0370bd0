"""The token is made once, for its owner alone, and nothing but a fit one is believed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from twisted_hook.apitoken import BadToken, token_of


def test_the_first_start_makes_it_for_the_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "token.new").write_text("half a tok")  # of a start that was cut off
    token = token_of(tmp_path)
    assert len(token) >= 43
    assert token_of(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_two_are_never_the_same(tmp_path: Path) -> None:
    first = token_of(tmp_path)
    (tmp_path / "token").unlink()
    assert token_of(tmp_path) != first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_one_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    token = token_of(tmp_path)
    (tmp_path / "token").chmod(mode)
    with pytest.raises(BadToken, match="chmod 600") as caught:
        token_of(tmp_path)
    assert token not in str(caught.value)


@pytest.mark.parametrize("text", ["", "short", "a" * 513, "two words of a token", "ünprintable-token"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(BadToken, match="remove it"):
        token_of(tmp_path)


def test_one_of_a_persons_own_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("my-own-long-enough-token\n")
    assert token_of(tmp_path) == "my-own-long-enough-token"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir(mode=0o700)
    with pytest.raises(BadToken):
        token_of(tmp_path)
