"""Files from the hub to their place: resumed, checked, never half there and never over another file."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.hub.conftest import taesd_bytes, taesd_state, vae_bytes, vae_state
from tests.hub.hub_server import HubServer
from tests.networks import taehv
from vae_lib.errors import Cancelled, DownloadError
from vae_lib.hub import (
    Catalog,
    CatalogEntry,
    DownloadedFile,
    Folders,
    GatedRepository,
    Hub,
    Progress,
    TargetExists,
    VerificationError,
    client,
    download,
    has_taesd,
    load_catalog,
    partial_downloads,
    pull,
    resolve,
)

ROOT = Path(__file__).resolve().parents[2]
VAE = vae_bytes()
SHA256 = hashlib.sha256(VAE).hexdigest()
UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
NORM = "decoder.norm_out.bias"


@pytest.fixture(autouse=True)
def _repository(hub: HubServer) -> None:
    hub.add("acme/my-vae", {"README.md": b"# VAE", "my_vae.safetensors": VAE})


def fetch(hub: HubServer, models: Path, reference: str = "acme/my-vae", **options: object) -> DownloadedFile:
    return pull(
        reference,
        models / "VAE",
        taesd_folder=models / "VAE-taesd",
        endpoint=hub.endpoint,
        **options,  # type: ignore[arg-type]
    )


def catalog(**about: Any) -> Catalog:
    """Of one entry, ``x``, for the file of the repository."""
    entry = CatalogEntry(
        title="X", id="x", repository="acme/my-vae", file="my_vae.safetensors", licence="MIT", purpose="For tests.",
        **about,
    )  # fmt: skip
    return Catalog((entry,))


def listed(folder: Path) -> list[str]:
    """What the WebUI's VAE dropdown lists: its patterns, over the folder and everything in it."""
    patterns = ("**/*.ckpt", "**/*.pt", "**/*.safetensors")
    return sorted(
        str(Path(path).relative_to(folder))
        for pattern in patterns
        for path in glob.iglob(os.path.join(folder, pattern), recursive=True)
    )


def hidden(folder: Path) -> list[str]:
    """Files that we keep to ourselves, but for locks."""
    return sorted(path.name for path in (folder / ".vae-guard").rglob("*") if path.is_file() and path.suffix != ".lock")


class TestStraightforward:
    def test_arrives_verified_under_its_name(self, hub: HubServer, models: Path) -> None:
        result = fetch(hub, models)
        assert result.path == models / "VAE" / "my_vae.safetensors"
        assert result.path.read_bytes() == VAE
        assert (result.sha256, result.bytes_fetched, result.resumed_from) == (SHA256, len(VAE), 0)
        assert result.identity.path == result.path
        assert (result.identity.kind, result.identity.latent_channels) == ("AutoencoderKL", 4)
        assert listed(models / "VAE") == ["my_vae.safetensors"]
        assert hidden(models / "VAE") == []

    def test_a_generic_name_becomes_that_of_the_repository(self, hub: HubServer, models: Path) -> None:
        hub.add("acme/sharp", {"vae/diffusion_pytorch_model.safetensors": VAE})
        assert fetch(hub, models, "acme/sharp").path.name == "sharp-vae.safetensors"

    def test_progress_ends_at_the_size(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", rate=4e6)
        seen: list[Progress] = []
        fetch(hub, models, progress=seen.append)
        assert [p.stage for p in seen[-2:]] == ["checking", "saving"]
        moving = [p for p in seen if p.stage == "downloading"]
        assert [p.done for p in moving] == sorted(p.done for p in moving)
        assert (moving[0].done, moving[-1].done, moving[-1].fraction) == (0, len(VAE), 1.0)
        assert all(p.total == len(VAE) for p in seen)
        speeds = [p.speed for p in moving if p.speed is not None]
        assert speeds
        assert all(0 < speed < 2e7 for speed in speeds[1:])
        assert moving[-1].eta == 0
        assert "of 1.5 MB" in moving[-1].message

    def test_the_token_is_for_the_hub_alone(self, hub: HubServer, models: Path) -> None:
        hub.token = "hf_right"
        hub.repos["acme/my-vae"].gated = True
        with pytest.raises(GatedRepository):
            fetch(hub, models)
        fetch(hub, models, token="hf_right")
        # The storage is on another host, here on another port.
        assert all("authorization" in request.headers for request in hub.requests[-4:] if not request.cdn)
        assert hub.gets()
        assert all("authorization" not in request.headers for request in hub.gets())

    def test_a_file_outside_lfs(self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.hub.hub_server.LFS_EXTENSIONS", ())
        assert fetch(hub, models).path.read_bytes() == VAE
        assert not hub.gets()
        assert fetch(hub, models).bytes_fetched == 0

    def test_a_repository_that_was_renamed(self, hub: HubServer, models: Path) -> None:
        hub.add("acme/old-name", {"my_vae.safetensors": VAE}, moved_to="acme/my-vae", lfs_info=False)
        assert fetch(hub, models, "acme/old-name").sha256 == SHA256

    def test_a_folder_that_does_not_exist_yet(self, hub: HubServer, tmp_path: Path) -> None:
        assert pull("acme/my-vae", tmp_path / "a" / "b", endpoint=hub.endpoint).path.is_file()

    def test_offline_between_finding_and_fetching(
        self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub.constants

        remote = resolve("acme/my-vae", Hub(hub.endpoint))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            download(remote, Folders(models / "VAE"), Hub())
        assert not hub.gets()


class TestSameAndOther:
    """A file of the name is there already."""

    def test_the_same_file_is_verified_and_not_fetched(self, hub: HubServer, models: Path) -> None:
        (models / "VAE" / "my_vae.safetensors").write_bytes(VAE)
        result = fetch(hub, models)
        assert (result.bytes_fetched, result.sha256) == (0, SHA256)
        assert not hub.gets()
        assert not (models / "VAE" / ".vae-guard").exists()

    def test_another_file_is_a_question(self, hub: HubServer, models: Path) -> None:
        mine = models / "VAE" / "my_vae.safetensors"
        mine.write_bytes(b"mine" + VAE[4:])  # of the same size
        with pytest.raises(TargetExists, match="Nothing was overwritten") as caught:
            fetch(hub, models)
        assert (caught.value.path, caught.value.free_name) == (mine, "my_vae-2.safetensors")
        assert not hub.gets()

        result = fetch(hub, models, on_conflict="rename")
        assert result.path.name == caught.value.free_name
        assert result.path.read_bytes() == VAE
        assert mine.read_bytes().startswith(b"mine")

    def test_a_name_taken_during_the_download_is_not_overwritten(self, hub: HubServer, models: Path) -> None:
        mine = models / "VAE" / "my_vae.safetensors"

        def take(progress: Progress) -> None:
            if progress.stage == "saving":
                mine.write_bytes(b"mine")

        with pytest.raises(TargetExists):
            fetch(hub, models, progress=take)
        assert mine.read_bytes() == b"mine"
        # All of it is here: nothing has to be fetched for the other name.
        result = fetch(hub, models, on_conflict="rename")
        assert (result.path.name, result.bytes_fetched) == ("my_vae-2.safetensors", 0)

    def test_never_through_a_symbolic_link(self, hub: HubServer, models: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside.safetensors"
        (models / "VAE" / "my_vae.safetensors").symlink_to(outside)
        with pytest.raises(TargetExists):
            fetch(hub, models)
        fetch(hub, models, on_conflict="rename")
        assert not outside.exists()
        assert (models / "VAE" / "my_vae.safetensors").is_symlink()

    def test_the_hidden_folder_must_be_real(self, hub: HubServer, models: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (models / "VAE" / ".vae-guard").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DownloadError, match="symbolic link"):
            fetch(hub, models)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_linked_part_is_not_written_through(self, hub: HubServer, models: Path, tmp_path: Path) -> None:
        part = interrupted(hub, models)
        victim = tmp_path / "victim"
        victim.write_bytes(b"mine")
        part.unlink()
        part.symlink_to(victim)
        assert fetch(hub, models).path.read_bytes() == VAE
        assert victim.read_bytes() == b"mine"

    def test_no_hard_links_on_this_file_system(
        self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(source: object, target: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        assert fetch(hub, models).path.read_bytes() == VAE
        (models / "VAE" / "my_vae.safetensors").write_bytes(b"mine")
        with pytest.raises(TargetExists):
            fetch(hub, models)

    def test_no_empty_file_is_left_when_the_last_step_fails(
        self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace = os.replace

        def refuse(source: Path, target: Path) -> None:
            if Path(target).parent == models / "VAE":
                raise OSError(errno.EPERM, "Operation not permitted")
            replace(source, target)

        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(DownloadError, match="permissions"):
            fetch(hub, models)
        assert listed(models / "VAE") == []
        monkeypatch.undo()
        assert fetch(hub, models).bytes_fetched == 0


def interrupted(hub: HubServer, models: Path) -> Path:
    """What a download leaves that was cancelled after three pieces."""
    asked = iter(range(10**6))
    with pytest.raises(Cancelled, match="continues from there"):
        # Before the pieces it is asked twice while the file is found, and once per request.
        fetch(hub, models, cancelled=lambda: next(asked) >= 6)
    return next((models / "VAE" / ".vae-guard").rglob("content.part"))


class TestInterrupted:
    def test_cancel_keeps_what_arrived_and_the_next_call_continues(self, hub: HubServer, models: Path) -> None:
        interrupted(hub, models)
        assert listed(models / "VAE") == []
        (partial,) = partial_downloads(models / "VAE")
        assert (partial.name, partial.reference) == ("my_vae.safetensors", "acme/my-vae/my_vae.safetensors")
        assert 0 < partial.done < len(VAE) == partial.size

        result = fetch(hub, models)
        assert result.path.read_bytes() == VAE
        assert (result.resumed_from, result.bytes_fetched) == (partial.done, len(VAE) - partial.done)
        assert hub.gets()[-1].headers["range"] == f"bytes={partial.done}-"
        assert partial_downloads(models / "VAE") == []

    def test_a_part_can_be_thrown_away(self, hub: HubServer, models: Path) -> None:
        interrupted(hub, models)
        (partial,) = partial_downloads(models / "VAE")
        partial.discard()
        assert partial_downloads(models / "VAE") == []
        assert fetch(hub, models).resumed_from == 0

    @pytest.mark.parametrize("about", [b"", b"[" * 100_000, b"\xff", b"[]", b'{"size": null}'])
    def test_a_part_that_says_nothing_sensible_of_itself_is_left_out(
        self, about: bytes, hub: HubServer, models: Path
    ) -> None:
        interrupted(hub, models)
        (partial,) = partial_downloads(models / "VAE")
        (partial.folder / "download.json").write_bytes(about)
        assert partial_downloads(models / "VAE") == []

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of POSIX")
    def test_a_pipe_in_place_of_what_a_part_says_of_itself(self, hub: HubServer, models: Path) -> None:
        interrupted(hub, models)
        (partial,) = partial_downloads(models / "VAE")
        (partial.folder / "download.json").unlink()
        os.mkfifo(partial.folder / "download.json")
        assert partial_downloads(models / "VAE") == []
        assert fetch(hub, models).resumed_from > 0

    def test_a_part_is_continued_from_another_repository_with_the_same_file(self, hub: HubServer, models: Path) -> None:
        hub.add("mirror/copy", {"copy_vae.safetensors": VAE})
        interrupted(hub, models)
        result = fetch(hub, models, "mirror/copy")
        assert result.path.name == "copy_vae.safetensors"
        assert result.resumed_from > 0

    def test_cut_connections_are_continued(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", cut_after=300_000, times=2)
        messages: list[str] = []
        result = fetch(hub, models, progress=lambda p: messages.append(f"{p.stage}: {p.message}"))
        assert result.path.read_bytes() == VAE
        assert result.bytes_fetched == len(VAE)
        starts = [request.headers.get("range") for request in hub.gets()]
        assert starts[0] is None
        assert len(starts) == 3
        assert all(start is not None for start in starts[1:])
        assert any(message.startswith("retrying: ") for message in messages)

    @pytest.mark.slow
    def test_many_cuts_with_progress_in_between(self, hub: HubServer, models: Path) -> None:
        """Giving up counts only attempts that brought nothing."""
        hub.fault("CDN GET", cut_after=80_000, times=20)
        assert fetch(hub, models).path.read_bytes() == VAE
        assert len(hub.gets()) > client.STREAM_ATTEMPTS

    @pytest.mark.slow
    def test_gives_up_and_keeps_the_part(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", cut_after=200_000)
        hub.fault("CDN GET", status=503, times=99)
        with pytest.raises(DownloadError, match=r"HTTP 503.*that arrived are kept"):
            fetch(hub, models)
        assert len(hub.gets()) == client.STREAM_ATTEMPTS
        hub.faults.clear()
        assert fetch(hub, models).resumed_from > 0

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_passing_errors_of_the_storage(self, hub: HubServer, models: Path, status: int) -> None:
        hub.fault("CDN GET", status=status, times=3, headers={"Retry-After": "0"})
        assert fetch(hub, models).path.read_bytes() == VAE

    def test_a_definite_error_of_the_storage(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", status=403, times=9)
        with pytest.raises(DownloadError, match="denied access"):
            fetch(hub, models)
        assert len(hub.gets()) == 1

    @pytest.mark.slow
    def test_cancelled_between_attempts(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", status=503, times=9, headers={"Retry-After": "60"})
        start = time.monotonic()
        with pytest.raises(Cancelled):
            fetch(hub, models, cancelled=lambda: time.monotonic() - start > 0.5)
        assert time.monotonic() - start < 30

    @pytest.mark.slow
    def test_a_slow_link_can_be_cancelled_soon(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", rate=10_000)  # a minute and a half for all of it
        start, done = time.monotonic(), [0]
        with pytest.raises(Cancelled):
            fetch(hub, models, progress=lambda p: done.append(p.done), cancelled=lambda: done[-1] > 2_000)
        assert time.monotonic() - start < 45
        (partial,) = partial_downloads(models / "VAE")
        assert 0 < partial.done < len(VAE) / 2

    @pytest.mark.parametrize("fault", [{"no_ranges": True}, {"shift": -100}])
    def test_a_server_that_sends_all_again_or_continues_elsewhere(
        self, fault: dict[str, Any], hub: HubServer, models: Path
    ) -> None:
        """Noticed at once, by its Content-Range, and not after all of it had been fetched for nothing."""
        interrupted(hub, models)
        hub.fault("CDN GET", **fault)
        result = fetch(hub, models)
        assert result.path.read_bytes() == VAE
        assert (result.resumed_from, result.bytes_fetched) == (0, len(VAE))

    @pytest.mark.parametrize("longer", [False, True])
    def test_a_damaged_part_is_fetched_again_and_not_blamed_on_the_hub(
        self, longer: bool, hub: HubServer, models: Path
    ) -> None:
        part = interrupted(hub, models)
        part.write_bytes(bytes(len(VAE) + 1 if longer else part.stat().st_size))
        result = fetch(hub, models)
        assert result.path.read_bytes() == VAE
        assert result.resumed_from == 0
        assert longer or result.bytes_fetched > len(VAE)

    def test_killed_between_the_last_byte_and_the_end_of_the_checks(self, hub: HubServer, models: Path) -> None:
        part = interrupted(hub, models)
        part.write_bytes(VAE)
        part.rename(part.with_name("my_vae.safetensors"))
        assert listed(models / "VAE") == []
        assert fetch(hub, models).bytes_fetched == 0


CHILD = """
import sys
from vae_lib.hub import pull
def say(progress):
    print(progress.stage, progress.done, flush=True)
result = pull(sys.argv[1], sys.argv[2], progress=say)
print("RESULT", result.resumed_from, result.bytes_fetched, flush=True)
"""


def child(hub: HubServer, folder: Path) -> subprocess.Popen[str]:
    env = os.environ | {"HF_ENDPOINT": hub.endpoint, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "acme/my-vae", str(folder)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed(hub: HubServer, models: Path) -> None:
    folder = models / "VAE"
    hub.fault("CDN GET", rate=200_000)
    process = child(hub, folder)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("downloading") and int(line.split()[1]) > 200_000:
            process.kill()
            break
    process.wait(120)
    process.stdout.close()
    assert listed(folder) == []
    (partial,) = partial_downloads(folder)
    assert 200_000 < partial.done < len(VAE)

    output, _ = child(hub, folder).communicate(timeout=240)
    _, resumed_from, fetched = output.splitlines()[-1].split()
    assert (int(resumed_from), int(fetched)) == (partial.done, len(VAE) - partial.done)
    assert (folder / "my_vae.safetensors").read_bytes() == VAE
    assert hidden(folder) == []


class TestChecks:
    """What is not right never reaches the folder, and its reason lies beside it in quarantine."""

    def refused(self, hub: HubServer, models: Path, reference: str, said: str, **options: object) -> str:
        with pytest.raises(VerificationError, match=said) as caught:
            fetch(hub, models, reference, **options)
        bad = caught.value.quarantined
        assert bad.is_file()
        assert str(bad) in str(caught.value)
        assert bad.parent == models / "VAE" / ".vae-guard" / "quarantine"
        assert listed(models / "VAE") == []
        assert partial_downloads(models / "VAE") == []
        reason = bad.with_name(f"{bad.name}.reason.txt").read_text(encoding="utf-8")
        assert f"{hub.endpoint}/{'/'.join(reference.split('/')[:2])}/resolve/" in reason
        return reason

    def test_other_bytes_than_announced(self, hub: HubServer, models: Path) -> None:
        hub.repos["acme/my-vae"].announced["my_vae.safetensors"] = "0" * 64
        reason = self.refused(hub, models, "acme/my-vae", f"its SHA-256 is {SHA256} instead of 0000")
        assert "0" * 64 in reason
        assert len(hub.gets()) == 1  # they came in one piece: no second try
        self.refused(hub, models, "acme/my-vae", "SHA-256")
        assert len(hidden(models / "VAE")) == 4  # the first one is still there

    def test_other_bytes_outside_lfs(self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.hub.hub_server.LFS_EXTENSIONS", ())
        remote = resolve("acme/my-vae", Hub(hub.endpoint))
        hub.repos["acme/my-vae"].files["my_vae.safetensors"] = bytes(len(VAE))
        with pytest.raises(VerificationError, match="git hash"):
            download(remote, Folders(models / "VAE"), Hub())

    def test_a_file_that_ends_early(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", short=1000, times=99)
        with pytest.raises(DownloadError, match=r"sends only .* of the"):
            fetch(hub, models)
        assert listed(models / "VAE") == []
        assert hub.bytes_sent < 3 * len(VAE)

    def test_a_server_that_never_gets_further(self, hub: HubServer, models: Path) -> None:
        """Without ranges, every attempt starts at the beginning and is cut at the same place."""
        hub.fault("CDN GET", cut_after=300_000, no_ranges=True, times=99)
        with pytest.raises(DownloadError, match=r"connection to .* failed"):
            fetch(hub, models)
        assert len(hub.gets()) == client.STREAM_ATTEMPTS

    def test_more_bytes_than_announced(self, hub: HubServer, models: Path) -> None:
        remote = resolve("acme/my-vae", Hub(hub.endpoint))
        hub.repos["acme/my-vae"].files["my_vae.safetensors"] = VAE * 40
        with pytest.raises(VerificationError, match=r"than the .* that the hub announced"):
            download(remote, Folders(models / "VAE"), Hub())
        # It stopped soon after the announced size.
        assert sum(path.stat().st_size for path in models.rglob("*.quarantined")) < 2 * len(VAE)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (save(UNET), "not a VAE"),
            (b"<!DOCTYPE html><html>Not here</html>", "is not used"),
            (save(UNET | {f"first_stage_model.{k}": v for k, v in vae_state().items()}), "whole checkpoint"),
            (save({k: v for k, v in vae_state().items() if k != NORM}), f"incomplete VAE: '{NORM}' missing"),
            (save(vae_state() | {NORM: torch.full((32,), float("nan"))}), "holds NaN or infinite numbers"),
        ],
        ids=["diffusion model", "web page", "checkpoint", "incomplete", "NaN"],
    )
    def test_what_no_decode_would_take(self, content: bytes, said: str, hub: HubServer, models: Path) -> None:
        hub.add("acme/wrong", {"vae.safetensors": content})
        self.refused(hub, models, "acme/wrong", said)

    @pytest.mark.parametrize(
        ("family", "kind", "said"),
        [
            ("SD3", "AutoencoderKL", "VAE of SD1, SD2 or SDXL, and the catalog says that x is one of SD3"),
            ("SD1", "TAESD", "its kind is AutoencoderKL"),
        ],
    )
    def test_not_what_the_catalog_says(self, hub: HubServer, models: Path, family: str, kind: str, said: str) -> None:
        with pytest.raises(VerificationError, match=said):
            fetch(hub, models, "x", catalog=catalog(family=family, kind=kind, sha256=None))
        assert list(models.rglob("*.safetensors")) == []

    def test_a_pickle_that_runs_code(self, hub: HubServer, models: Path, tmp_path: Path) -> None:
        trace = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (str(trace),)

        plain, legacy = tmp_path / "plain.pt", tmp_path / "legacy.pt"
        torch.save({"decoder.conv_in.weight": torch.zeros(1), "evil": Evil()}, plain)
        torch.save({"evil": Evil()}, legacy, _use_new_zipfile_serialization=False)
        files = {
            "plain.pt": plain.read_bytes(),
            "legacy.pt": legacy.read_bytes(),
            "bare.ckpt": pickle.dumps(Evil()),
            "renamed.safetensors": pickle.dumps(Evil()),
        }
        hub.add("evil/vae", files)
        for name in files:
            self.refused(hub, models, f"evil/vae/{name}", "is not used", allow_pickle=True)
        assert not trace.exists()

    def test_an_honest_pickle(self, hub: HubServer, models: Path, tmp_path: Path) -> None:
        torch.save({"state_dict": vae_state()}, tmp_path / "vae.ckpt")
        hub.add("acme/old", {"kl-f8.ckpt": (tmp_path / "vae.ckpt").read_bytes()})
        result = fetch(hub, models, "acme/old", allow_pickle=True)
        assert (result.path.name, result.identity.kind) == ("kl-f8.ckpt", "AutoencoderKL")


class TestHostileNames:
    """A repository may call its files what it likes; here they are plain names in one folder."""

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("x" * 300 + ".safetensors", "x" * 188 + ".safetensors"),
            (".hidden.safetensors", "hidden.safetensors"),
            ("CON.safetensors", "_CON.safetensors"),
            ("ab:c|d?.safetensors", "ab_c_d_.safetensors"),
            ("my VAE アニメ.safetensors", "my VAE アニメ.safetensors"),
        ],
    )
    def test_saved_under_a_plain_name(self, hub: HubServer, models: Path, path: str, name: str) -> None:
        hub.add("evil/vae", {path: VAE})
        result = fetch(hub, models, "evil/vae")
        assert result.path == models / "VAE" / name
        assert result.path.read_bytes() == VAE

    @pytest.mark.parametrize(
        "path",
        [
            "../../../up_vae.safetensors",
            "/abs_vae.safetensors",
            "..\\..\\up_vae.safetensors",
            "C:\\vae.safetensors",
        ],
    )
    def test_names_that_lead_elsewhere_are_not_offered(self, hub: HubServer, models: Path, path: str) -> None:
        hub.add("evil/vae", {path: VAE, "plain.safetensors": VAE})
        assert fetch(hub, models, "evil/vae").path == models / "VAE" / "plain.safetensors"
        with pytest.raises(DownloadError):
            fetch(hub, models, f"evil/vae/{path}")
        assert [p.name for p in models.rglob("*.safetensors")] == ["plain.safetensors"]


class TestDisk:
    def test_space_is_checked_before(self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
        with pytest.raises(DownloadError, match=r"needs 1.5 MB more, .* has 1.0 MB free"):
            fetch(hub, models)
        assert not hub.gets()

    def test_a_disk_that_fills_up(self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from vae_lib.hub import fetch as fetching

        opened = fetching._open_at

        class Full:
            def __init__(self, path: Path, start: int) -> None:
                self.file = opened(path, start)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *error: object) -> None:
                self.file.close()

            def write(self, chunk: memoryview) -> int:
                if self.file.tell() > 200_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(chunk[:1000])  # as a full disk does: less than was asked

        monkeypatch.setattr(fetching, "_open_at", Full)
        with pytest.raises(DownloadError, match=r"disk of .* is full.*kept"):
            fetch(hub, models)
        monkeypatch.undo()
        assert fetch(hub, models).resumed_from > 200_000

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_may_not_be_written_to(self, hub: HubServer, models: Path) -> None:
        (models / "VAE").chmod(0o555)
        with pytest.raises(DownloadError, match="permissions"):
            fetch(hub, models)

    def test_a_folder_that_is_a_file(self, hub: HubServer, tmp_path: Path) -> None:
        (tmp_path / "VAE").write_text("not a folder")
        with pytest.raises(DownloadError, match="cannot be used"):
            pull("acme/my-vae", tmp_path / "VAE", endpoint=hub.endpoint)

    def test_the_taesd_folder_on_another_disk(
        self, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its name does not say that it is a TAESD: it is staged with the VAEs and has to be copied over."""
        hub.add("acme/tiny", {"small_vae.safetensors": taesd_bytes()})
        link = os.link

        def other_disk(source: Path, target: Path) -> None:
            if "VAE-taesd" in str(target) and "VAE-taesd" not in str(source):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            link(source, target)

        monkeypatch.setattr(os, "link", other_disk)
        result = fetch(hub, models, "acme/tiny")
        assert result.path == models / "VAE-taesd" / "small_vae.safetensors"
        assert result.path.read_bytes() == taesd_bytes()
        assert hidden(models / "VAE") == hidden(models / "VAE-taesd") == []


class TestTogether:
    @pytest.mark.slow
    def test_two_downloads_of_one_file_fetch_it_once(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", rate=400_000)
        results: list[DownloadedFile] = []
        stages: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: results.append(fetch(hub, models, progress=lambda p: stages.append(p.stage)))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert sorted(result.bytes_fetched for result in results) == [0, len(VAE)]
        assert len(hub.gets()) == 1
        assert "waiting" in stages

    @pytest.mark.slow
    def test_waiting_for_another_can_be_cancelled(self, hub: HubServer, models: Path) -> None:
        hub.fault("CDN GET", rate=20_000)  # three quarters of a minute for all of it
        stop, stages = threading.Event(), []

        def fetch_until_stopped() -> None:
            with pytest.raises(Cancelled):
                fetch(hub, models, cancelled=stop.is_set)

        first = threading.Thread(target=fetch_until_stopped, daemon=True)
        first.start()
        while not hub.gets():
            time.sleep(0.02)
        with pytest.raises(Cancelled):
            fetch(hub, models, progress=lambda p: stages.append(p.stage), cancelled=lambda: "waiting" in stages)
        assert first.is_alive()
        stop.set()
        first.join(120)
        assert fetch(hub, models).path.read_bytes() == VAE


class TestTAESD:
    @pytest.fixture(autouse=True)
    def _repository(self, hub: HubServer) -> None:
        hub.add("madebyollin/taesdxl", {"diffusion_pytorch_model.safetensors": taesd_bytes()})

    def test_goes_to_its_own_folder_with_the_files_of_the_host(self, hub: HubServer, models: Path) -> None:
        assert not has_taesd(models / "VAE-taesd", "SDXL")
        result = fetch(hub, models, "madebyollin/taesdxl")
        folder = models / "VAE-taesd"
        assert result.path == folder / "taesdxl.safetensors"
        assert {path.name for path in result.also} == {"taesdxl_encoder.pth", "taesdxl_decoder.pth"}
        assert listed(models / "VAE") == []
        assert has_taesd(folder, "SDXL")
        assert not has_taesd(folder, "SD3")
        for half in ("encoder", "decoder"):
            loaded = torch.load(folder / f"taesdxl_{half}.pth", weights_only=True)
            expected = {
                name.partition(".")[2]: tensor for name, tensor in taesd_state().items() if name.startswith(half)
            }
            assert loaded.keys() == expected.keys()
            assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())

    def test_the_host_files_pass_the_check_of_pickles_that_the_host_makes(self, hub: HubServer, models: Path) -> None:
        """Its rules (v1.10.1): the old format is five pickles in a row that name only tensors and
        dictionaries.
        """
        allowed = {
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch", "HalfStorage"),
            ("torch", "FloatStorage"),
        }

        class Checked(pickle.Unpickler):
            def persistent_load(self, saved_id: tuple[object, ...]) -> object:
                assert saved_id[0] == "storage"
                return torch.storage.TypedStorage(_internal=True)

            def find_class(self, module: str, name: str) -> object:
                assert (module, name) in allowed
                return super().find_class(module, name)

        for path in fetch(hub, models, "madebyollin/taesdxl").also:
            with path.open("rb") as file:
                for _ in range(5):
                    Checked(file).load()

    def test_files_of_the_host_are_left_alone(self, hub: HubServer, models: Path) -> None:
        there = models / "VAE-taesd" / "taesdxl_decoder.pth"
        there.write_bytes(b"from GitHub")
        result = fetch(hub, models, "madebyollin/taesdxl")
        assert [path.name for path in result.also] == ["taesdxl_encoder.pth"]
        assert there.read_bytes() == b"from GitHub"

    def test_lost_host_files_are_written_again_without_fetching(self, hub: HubServer, models: Path) -> None:
        for path in fetch(hub, models, "madebyollin/taesdxl").also:
            path.unlink()
        again = fetch(hub, models, "madebyollin/taesdxl")
        assert again.bytes_fetched == 0
        assert len(again.also) == 2
        assert len(hub.gets()) == 1

    def test_half_a_taesd(self, hub: HubServer, models: Path) -> None:
        half = {k.partition(".")[2]: v for k, v in taesd_state(16).items() if k.startswith("decoder")}
        hub.add("madebyollin/taesd3", {"taesd3_decoder.safetensors": save(half)})
        result = fetch(hub, models, "madebyollin/taesd3")
        assert result.identity.kind == "TAESD decoder"
        assert [path.name for path in result.also] == ["taesd3_decoder.pth"]
        assert not has_taesd(models / "VAE-taesd", "SD3")

    def test_a_videos_is_one_file_as_its_makers_wrote_it(self, hub: HubServer, models: Path) -> None:
        hub.add("acme/taew2_1", {"taew2_1.safetensors": save(taehv.weights())})
        result = fetch(hub, models, "acme/taew2_1")
        assert [path.name for path in result.also] == ["taew2_1.pth"]
        assert has_taesd(models / "VAE-taesd", "Qwen-Image")
        written = torch.load(result.also[0], weights_only=True)
        assert written.keys() == taehv.weights().keys()
        assert all(torch.equal(written[name], tensor) for name, tensor in taehv.weights().items())

    def test_a_videos_of_other_latents_gets_no_name_of_the_host(self, hub: HubServer, models: Path) -> None:
        """lightx2v's takes the VAE's own latents and not the sampler's."""
        hub.add("acme/tiny", {"lighttaew2_1.safetensors": save(taehv.weights())})
        assert fetch(hub, models, "acme/tiny").also == ()

    def test_a_taesd_that_says_nothing_of_its_family(self, hub: HubServer, models: Path) -> None:
        hub.add("acme/tiny", {"small.safetensors": taesd_bytes()})
        result = fetch(hub, models, "acme/tiny")
        assert result.path == models / "VAE-taesd" / "small.safetensors"
        assert result.also == ()
        assert fetch(hub, models, "acme/tiny").bytes_fetched == 0

    def test_a_full_vae_that_is_called_taesd(self, hub: HubServer, models: Path) -> None:
        hub.add("acme/taesd-teacher", {"teacher.safetensors": VAE})
        result = fetch(hub, models, "acme/taesd-teacher")
        assert result.path == models / "VAE" / "teacher.safetensors"
        assert [path.name for path in (models / "VAE-taesd").rglob("*.pth")] == []

    def test_a_taesd_that_does_not_load(self, hub: HubServer, models: Path) -> None:
        broken = taesd_state() | {"decoder.3.conv.0.weight": torch.zeros(64, 32, 3, 3)}
        hub.add("acme/taesd", {"taesd.safetensors": save(broken)})
        with pytest.raises(VerificationError):
            fetch(hub, models, "acme/taesd")
        assert listed(models / "VAE-taesd") == []

    def test_without_a_folder_of_its_own(self, hub: HubServer, models: Path) -> None:
        result = pull("madebyollin/taesdxl", models / "VAE", endpoint=hub.endpoint)
        assert result.path == models / "VAE" / "taesdxl.safetensors"
        assert result.also == ()


def test_a_catalog_entry_that_is_here_needs_no_hub(hub: HubServer, models: Path) -> None:
    mine = catalog(family="SDXL", kind="AutoencoderKL", sha256=SHA256, size=len(VAE))
    first = fetch(hub, models, "x", catalog=mine)
    assert (first.identity.family_name, first.identity.certainty) == ("SDXL", "hash")
    hub.requests.clear()
    assert fetch(hub, models, "x", catalog=mine).bytes_fetched == 0
    assert hub.requests == []
    # With other bytes it is not the entry's file any more.
    (models / "VAE" / "my_vae.safetensors").write_bytes(bytes(len(VAE)))
    with pytest.raises(TargetExists):
        fetch(hub, models, "x", catalog=mine)


def test_every_catalog_entry_can_be_asked_for(hub: HubServer, models: Path) -> None:
    """Repository, revision and file as the catalog has them, on a hub that has something else there."""
    for entry in load_catalog().entries:
        hub.add(entry.repository, {entry.file: VAE}, branches=("main", entry.revision or "main"))
        if entry.sha256 is None:
            continue
        with pytest.raises(DownloadError, match="no longer the file that the catalog knows"):
            fetch(hub, models, entry.id, allow_pickle=True)
    assert not hub.gets()


class TestWithoutAHash:
    """Mirrors may tell neither size nor hash, and servers may answer 0 to every HEAD."""

    @pytest.fixture(autouse=True)
    def _mirror(self, hub: HubServer) -> None:
        hub.plain = True

    def test_it_is_not_called_verified(self, hub: HubServer, models: Path) -> None:
        result = fetch(hub, models)
        assert result.path.read_bytes() == VAE
        assert (result.verified_by, result.sha256) == (None, SHA256)

    def test_again_it_is_the_same_file(self, hub: HubServer, models: Path) -> None:
        first, again = fetch(hub, models), fetch(hub, models)
        assert again.path == first.path
        assert [path.name for path in (models / "VAE").glob("*.safetensors")] == [first.path.name]

    def test_another_file_of_its_name_stays(self, hub: HubServer, models: Path) -> None:
        fetch(hub, models).path.write_bytes(b"another")
        with pytest.raises(TargetExists, match="is not the file of acme/my-vae"):
            fetch(hub, models)
        assert fetch(hub, models, on_conflict="rename").path.read_bytes() == VAE

    def test_an_empty_answer_is_not_the_folders_fault(self, hub: HubServer, models: Path) -> None:
        hub.repos["acme/my-vae"].files["my_vae.safetensors"] = b""
        with pytest.raises(DownloadError, match=r"The hub sent an empty file for acme/my-vae/my_vae\.safetensors"):
            fetch(hub, models)


def test_what_it_was_verified_by(hub: HubServer, models: Path) -> None:
    assert fetch(hub, models).verified_by == "SHA-256"
    assert fetch(hub, models).verified_by == "SHA-256"  # found in its place
