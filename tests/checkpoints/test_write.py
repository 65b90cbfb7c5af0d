"""Writing: all or nothing."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lib.checkpoints import open_weights, save_safetensors, write_atomically
from vae_lib.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    tensors = {
        "plain": torch.arange(6.0).reshape(2, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "with gradient": torch.ones(2, requires_grad=True),
        "nothing": torch.empty(0, 4),
    }
    tensors["shared"] = tensors["plain"]
    tensors["row"] = tensors["plain"][1]
    save_safetensors(tensors, tmp_path / "x.safetensors", {"note": "ü"})
    theirs = safetensors.torch.load_file(str(tmp_path / "x.safetensors"))
    assert theirs.keys() == tensors.keys()
    with open_weights(tmp_path / "x.safetensors") as file:
        assert file.header.metadata == {"note": "ü"}
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name), tensor)
            assert torch.equal(theirs[name], tensor)
    assert names(tmp_path) == ["x.safetensors"]


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.lists(st.integers(0, 3), max_size=4),
        max_size=4,
    )
)
def test_any_names_and_shapes_come_back(
    shapes: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_safetensors(tensors, path)
    with open_weights(path) as file:
        assert file.header.tensors.keys() == tensors.keys()
        assert all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())


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


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX's")
def test_safetensors_that_do_not_fit(tmp_path: Path) -> None:
    """A limit on the size of files makes the library's own write fail, in a process of its own."""
    script = """if True:
        import resource, signal, sys, torch
        from vae_lib.checkpoints import save_safetensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        save_safetensors({"x": torch.zeros(100_000)}, sys.argv[1])
    """
    command = [sys.executable, "-B", "-c", script, str(tmp_path / "x.safetensors")]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "InputError" in found.stderr
    assert "the disk is full" in found.stderr
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
