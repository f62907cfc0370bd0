"""What the releases of an app have in common: paths in each tree that lead to one place beside them.

Touches one new tree and the shared place. It never writes through a link that a repository has brought along.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EXDEV
from pathlib import Path, PurePosixPath

from twisted_hook.model import StepFailed


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared ``paths`` of an app, and the ``directory`` in which they really are, beside that of the releases."""

    directory: Path
    paths: tuple[str, ...]
    guarded: bool = False
    """The directory is another account's: a link in the place of one below it is a trap, since we are root."""

    @property
    def places(self) -> list[Path]:
        """Where they really are, with the directories above them."""
        pure = [_checked(path) for path in self.paths]
        return [self.directory / part for path in pure for part in (*reversed(path.parents[:-1]), path)]

    def link_into(self, tree: Path, replaced: Path) -> None:
        """Replace each of the paths in a tree by a link; what the tree had there goes to the directory ``replaced``.

        The tree has to be as deep below the parent of ``directory`` as a release is: the links are relative, so that
        the whole can be moved. Raises ``StepFailed``, and ``OSError`` as it comes.
        """
        for number, path in enumerate(self.paths):
            place = tree / _checked(path)
            _make_parents(tree, place, path)
            self._seed(path, place)
            if place.is_dir() and not place.is_symlink():
                replaced.mkdir(exist_ok=True)
                place.rename(replaced / str(number))
            else:
                place.unlink(missing_ok=True)
            depth = len(place.relative_to(self.directory.parent).parts) - 1
            place.symlink_to(Path(*[".."] * depth, self.directory.name, _checked(path)))

    def _seed(self, path: str, place: Path) -> None:
        """Let the first release bring along what is shared from then on. A link of the repository's is no content."""
        name = _checked(path).name
        with self._parent_of(path) as parent:
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=parent, follow_symlinks=False)
                return
            if place.exists() and not place.is_symlink():
                self._move(place, path, parent)
            elif path.endswith("/") or "." not in name:
                os.mkdir(name, dir_fd=parent)
            # Else the app will write it: a file that is there and empty is no database.

    @contextmanager
    def _parent_of(self, path: str) -> Iterator[int]:
        """A descriptor of the directory in which this is to be, made if need be: its path may change at any moment."""
        self.directory.mkdir(parents=True, exist_ok=True)
        how = os.O_RDONLY | os.O_DIRECTORY
        parent = os.open(self.directory, how)
        try:
            for part in _checked(path).parent.parts:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=parent)
                try:
                    below = os.open(part, how | (os.O_NOFOLLOW if self.guarded else 0), dir_fd=parent)
                except NotADirectoryError:
                    where = f"{part} in {self.directory}"
                    raise StepFailed(f"shared: {path} cannot be shared, since {where} is no directory") from None
                os.close(parent)
                parent = below
            yield parent
        finally:
            os.close(parent)

    def _move(self, place: Path, path: str, parent: int) -> None:
        try:
            os.rename(place, _checked(path).name, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != EXDEV:
                raise
            if self.guarded:  # to copy takes a while, in which its owner may put a link in the way
                raise StepFailed(f"shared: {self.directory} is on another disk; copy {path} there yourself") from error
            shutil.move(place, self.directory / _checked(path))


def owner_of(place: Path) -> tuple[int, int] | None:
    """The ids of its user and its group; None if there is nothing."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return None
    return found.st_uid, found.st_gid


def _checked(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts:
        raise StepFailed(f"shared: {path!r} is no path in the tree")
    return pure


def _make_parents(tree: Path, place: Path, path: str) -> None:
    for parent in reversed(place.relative_to(tree).parents[:-1]):
        above = tree / parent
        if above.is_symlink() or (above.exists() and not above.is_dir()):
            raise StepFailed(f"shared: {path} cannot be linked, since {parent} in the tree is no directory")
        above.mkdir(exist_ok=True)
