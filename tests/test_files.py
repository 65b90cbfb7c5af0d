"""Writing: all or nothing."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from tests.windows import files_in_use_stay
from vae_lib.errors import InputError
from vae_lib.files import files_in, is_gone, require_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_aside_has_the_suffix_and_the_usual_permissions(tmp_path: Path) -> None:
    asides: list[Path] = []

    def writer(aside: Path) -> None:
        asides.append(aside)
        aside.write_text("new")

    write_atomically(tmp_path / "picture.png", writer)
    assert asides[0].suffix == ".png"
    assert asides[0].parent == tmp_path
    assert asides[0].name.startswith(".picture")
    assert (tmp_path / "picture.png").read_text() == "new"
    (tmp_path / "other.png").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("picture.png", "other.png")}
    assert len(modes) == 1


def fail_with(error: BaseException) -> object:
    def writer(aside: Path) -> None:
        aside.write_text("half")
        raise error

    return writer


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full; make room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full; make room"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "permission denied"),
        (RuntimeError("Error: IoError(Os { code: 28, kind: StorageFull })"), "the disk is full; make room"),
    ],
)
def test_a_failed_write_leaves_what_was_there(
    there_before: bool, error: Exception, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    if there_before:
        path.write_text("old")
    with pytest.raises(InputError, match=rf"x\.png was not written: {sentence}"):
        write_atomically(path, fail_with(error))  # type: ignore[arg-type]
    assert names(tmp_path) == (["x.png"] if there_before else [])
    assert not there_before or path.read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_bugs_and_interrupts_pass_and_leave_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "x.png", fail_with(error))  # type: ignore[arg-type]
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk to write to is there on Linux only")
def test_a_really_full_disk(tmp_path: Path) -> None:
    def writer(aside: Path) -> None:
        aside.write_text("half")
        with Path("/dev/full").open("wb") as full:
            full.write(bytes(100_000))

    with pytest.raises(InputError, match="the disk is full"):
        write_atomically(tmp_path / "x.png", writer)
    assert names(tmp_path) == []


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    def never(aside: Path) -> None:
        pytest.fail("nothing is to be written")

    with pytest.raises(InputError, match="is a folder"):
        write_atomically(tmp_path, never)
    with pytest.raises(InputError, match="There is no folder"):
        write_atomically(tmp_path / "no" / "x.png", never)
    if Path("/dev/null").exists():
        with pytest.raises(InputError, match="not an ordinary file"):
            write_atomically("/dev/null", never)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "x.txt"
    target.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    write_atomically(link, lambda aside: aside.write_text("new"))
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path / "real") == ["x.txt"]


def test_a_target_that_may_not_be_looked_at(closed: Path) -> None:
    with pytest.raises(InputError, match=r"x\.png cannot be written: file name too long\."):
        write_atomically(closed / "x.png", lambda aside: pytest.fail("nothing is to be written"))


def test_a_folder_that_is_needed(tmp_path: Path, closed: Path) -> None:
    require_folder(tmp_path, "make it")
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=rf"There is no folder .*{path.name}; make it\."):
            require_folder(path, "make it")
    with pytest.raises(InputError, match=r"cannot be looked at \(File name too long\); check its permissions"):
        require_folder(closed / "below", "make it")


def test_what_is_certainly_gone(tmp_path: Path, closed: Path) -> None:
    (tmp_path / "file").touch()
    assert [is_gone(path) for path in (tmp_path / "file", tmp_path / "missing")] == [False, True]
    assert is_gone(tmp_path / "file" / "below")
    assert not is_gone(closed / "below")


def test_what_is_in_a_folder_with_closed_ones_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/x", "a", "b/closed/hidden from us", ".hidden/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scandir, shut = os.scandir, tmp_path / "b" / "closed"

    def guarded(folder: Path) -> object:
        if folder == shut:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    files, closed = files_in(tmp_path)
    assert files == [tmp_path / "a", tmp_path / "b" / "x"]
    assert closed == {shut: f"The folder {shut} cannot be looked into: Permission denied."}
    assert files_in(tmp_path / "missing") == ([], {})


def test_a_file_that_is_in_use_on_windows(tmp_path: Path) -> None:
    """It stays whole, and nothing is left beside it."""
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    with (
        target.open("rb"),
        files_in_use_stay(),
        pytest.raises(InputError, match=r"a\.safetensors was not written: it is open in another program"),
    ):
        write_atomically(target, lambda path: path.write_bytes(b"new"))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "vaes"
    for path in (elsewhere / "deep" / "far.pt", folder / "own" / "near.pt"):
        path.parent.mkdir(parents=True)
        path.touch()
    for link, target in (
        (folder / "linked", elsewhere),
        (folder / "a twin", elsewhere),
        (folder / "an alias", folder / "own"),  # has a name of its own
        (folder / "own" / "circle", folder),
        (elsewhere / "deep" / "circle", elsewhere),
        (elsewhere / "back", folder / "own"),
        (folder / "itself", folder / "itself"),
        (folder / "nowhere", tmp_path / "missing"),
    ):
        link.symlink_to(target, target_is_directory=True)
    files, closed = files_in(folder)
    assert closed == {}
    near = folder / "own" / "near.pt"
    assert near in files
    (far,) = set(files) - {near}
    assert far in (folder / "linked" / "deep" / "far.pt", folder / "a twin" / "deep" / "far.pt")
    assert len(files) == 2


def test_what_an_interrupted_write_left_behind_goes_with_a_later_one(tmp_path: Path) -> None:
    target, old = tmp_path / "profiles.json", time.time() - 7200
    left = [tmp_path / f".{name}" for name in ("profiles.0123456789ab.json", "profiles.ba9876543210.json")]
    others = [tmp_path / name for name in (".profiles.json", ".other.0123456789ab.json", ".profiles.0123456789ab.txt")]
    for path in (*left, *others):
        path.write_text("half")
        os.utime(path, (old, old))
    os.utime(left[1])  # may still be written
    write_atomically(target, lambda aside: aside.write_text("whole"))
    assert set(tmp_path.iterdir()) == {target, left[1], *others}
