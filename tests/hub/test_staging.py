"""The last step of a download, and the first: names are taken without overwriting, links are not followed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.hub.conftest import vae_bytes
from tests.hub.hub_server import HubServer
from vae_lib.errors import DownloadError
from vae_lib.hub import has_taesd, load_catalog, partial_downloads, pull
from vae_lib.hub.fetch import _open_at
from vae_lib.hub.progress import describe, time_text
from vae_lib.hub.staging import as_sentence, free_name, place

LINKS = ("hard links", "no hard links", "another disk")


@pytest.fixture(params=LINKS)
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def refuse(source: Path, target: Path) -> None:
        if request.param == "another disk":
            if "disk2" in str(target) and "disk2" not in str(source):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            link(source, target)
        else:
            raise OSError(errno.EPERM, "Operation not permitted")

    if request.param != LINKS[0]:
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("_file_system")
class TestPlace:
    def test_moves_the_file(self, tmp_path: Path) -> None:
        source, target = tmp_path / "part", tmp_path / "disk2" / "a.pt"
        source.write_bytes(b"new")
        place(source, target)
        assert target.read_bytes() == b"new"
        assert not source.exists()
        assert [path.name for path in target.parent.rglob("*") if path.is_file()] == ["a.pt"]

    @pytest.mark.parametrize("dangling", [False, True])
    def test_takes_no_name_that_is_taken(self, tmp_path: Path, dangling: bool) -> None:
        """Even when it is taken between our look and the last step, which is why the last step itself looks."""
        source, target = tmp_path / "part", tmp_path / "disk2" / "a.pt"
        source.write_bytes(b"new")
        target.parent.mkdir()
        if dangling:
            target.symlink_to(tmp_path / "nowhere")
        else:
            target.write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            place(source, target)
        assert source.read_bytes() == b"new"
        assert not (tmp_path / "nowhere").exists()
        assert dangling or target.read_bytes() == b"mine"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse to follow links")
def test_a_part_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        _open_at(tmp_path / "part", 0)
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_free_names(tmp_path: Path) -> None:
    assert free_name(tmp_path, "a.vae.pt") == "a.vae.pt"
    (tmp_path / "a.vae.pt").touch()
    (tmp_path / "a.vae-2.pt").symlink_to("nowhere")
    assert free_name(tmp_path, "a.vae.pt") == "a.vae-3.pt"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "check its permissions"),
        (errno.EROFS, "check its permissions"),
        (errno.EIO, "cannot be used for downloads"),
    ],
)
def test_what_the_file_system_refuses_is_a_sentence(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(DownloadError, match=said), as_sentence(tmp_path):
        raise OSError(number, os.strerror(number))


def test_numbers_for_people() -> None:
    assert [time_text(s) for s in (0.4, 59.4, 200, 7500)] == ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]
    assert describe(12_000_000, 334_641_164, 5.2e6, 62.0) == "12.0 of 335 MB, 5.2 MB/s, 1 min 2 s left"
    assert describe(12_000, 334_641_164, None, None) == "12.0 kB of 335 MB"
    assert describe(12_000, None, None, None) == "12.0 kB"


def test_a_folder_that_may_not_be_looked_at(hub: HubServer, closed: Path) -> None:
    hub.add("acme/x", {"x.safetensors": vae_bytes()})
    entry = next(entry for entry in load_catalog().entries if entry.sha256 is not None)
    for reference in ("acme/x", entry.id):
        with pytest.raises(DownloadError, match="cannot be used for downloads: File name too long"):
            pull(reference, closed, endpoint=hub.endpoint)
    assert not hub.gets()
    assert partial_downloads(closed) == []
    assert not has_taesd(closed, "SD1")
