"""VAE Guard at work in a host that is not there: what is decoded by whom, noted, told and kept."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.guard.fake_host import FakeHost, FakeVAE, decoded
from tests.networks.small import SMALL, distance, latents_for
from tests.webui import weights
from tests.windows import files_in_use_stay
from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints import unfinished
from vae_lib.errors import Cancelled, InputError
from vae_lib.guard import NO_NETWORK, UNKNOWN, Guard, Request, decode_again, not_repeated
from vae_lib.guard.forward import Forward


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def guard(host: FakeHost) -> Guard:
    guard = Guard(host)
    host.wrap(guard)
    return guard


@pytest.fixture
def latents() -> Tensor:
    return latents_for(SMALL, 4, 4)


MISSED = Request(threshold=1000.0)


def test_no_host_is_needed() -> None:
    assert not any(name == "modules" or name.startswith("modules.") for name in sys.modules)


@pytest.mark.parametrize("decode_by", ["Auto", "Full", "Tiled", "Tiled + RAM", "CPU"])
def test_ours_gives_the_hosts_picture(host: FakeHost, guard: Guard, latents: Tensor, decode_by: str) -> None:
    assert host.loaded is not None
    wanted = decoded(host.loaded.module, latents)
    picture = host.generate(latents, Request(False, decode_by))
    assert distance(picture, wanted) < 1e-5
    told = {"Auto": "full", "CPU": "on the CPU"}.get(decode_by, decode_by)
    assert host.noted["VAE Guard"].lower().startswith(told.lower())
    assert host.noted.get("VAE Guard decode by") == (None if decode_by == "Auto" else decode_by)
    assert host.told == []
    assert "forward" not in vars(host.loaded.module.decoder)  # nothing of ours stays


def test_a_fallback_is_told_and_noted(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    host.generate(torch.cat([latents] * 2), MISSED)
    (told,) = host.told  # once for the batch
    for text, words in ((host.noted["VAE Guard"], ["tiled"]), (told, ["VAE Guard: ", "8x8", "in tiles"])):
        assert all(word in text for word in [*words, "1000 GB"])


def test_another_thread_is_left_alone(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    """A live preview decodes by the same VAE at the same time."""
    previews: list[Tensor] = []

    def with_preview(module: Any, given: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: previews.append(decoded(module, given)))
        thread.start()
        thread.join()
        return decoded(module, given)

    picture = host.generate(latents, Request(False, "Tiled"), with_preview)
    assert distance(previews[0], picture) < 1e-5
    assert len(host.noted["VAE Guard"].split("tiled")) == 2


def test_a_bug_of_ours_ends_in_the_hosts_decode(
    host: FakeHost,
    guard: Guard,
    latents: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Forward, "_outcome", fail)
    assert host.loaded is not None
    wanted = decoded(host.loaded.module, latents)
    assert torch.equal(host.generate(latents, Request(False, "Tiled")), wanted)
    assert host.noted == {"VAE Guard": "the WebUI's own decode"}  # and not what was asked for
    assert "could not decode the picture (ZeroDivisionError: oh)" in host.told[0]
    assert guard.kept.items()[0].route == "the WebUI's own decode"
    host.generate(latents)
    assert len(host.told) == 1
    assert "ZeroDivisionError: oh" in guard.notices.last_report()
    assert guard.notices.last_report() in capsys.readouterr().err


def test_when_ours_has_a_bug_and_the_host_no_memory_our_smaller_ways_are_left(
    host: FakeHost, guard: Guard, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.loaded is not None
    module = host.loaded.module
    wanted, outcome = decoded(module, latents), Forward._outcome

    def fail_once(self: Forward, *args: Any) -> Any:
        monkeypatch.setattr(Forward, "_outcome", outcome)
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Forward, "_outcome", fail_once)

    def no_memory(given: Tensor) -> Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(type(module.decoder), "forward", lambda self, given: no_memory(given))
    assert distance(host.generate(latents), wanted) < 1e-5
    assert host.noted["VAE Guard"].startswith("tiled")


STRANGE = {
    "no VAE": None,
    "another kind": FakeVAE(torch.nn.Identity()),
    "a video's": FakeVAE(torch.nn.ModuleDict({half: torch.nn.Conv3d(4, 4, 3) for half in ("encoder", "decoder")})),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_host_that_has_its_vae_elsewhere(
    host: FakeHost, guard: Guard, latents: Tensor, strange: FakeVAE | None, capsys: pytest.CaptureFixture[str]
) -> None:
    own, host.loaded = host.loaded, strange
    assert own is not None
    for _ in range(2):
        picture = host.generate(latents, Request(decode_by="Tiled"), lambda _, given: decoded(own.module, given))
    assert torch.equal(picture, decoded(own.module, latents))
    sentence = UNKNOWN if strange is None else NO_NETWORK
    assert (host.noted, host.told, guard.unserved) == ({}, [sentence], sentence)
    assert capsys.readouterr().err.splitlines() == [sentence]
    host.loaded = own
    host.generate(latents)
    assert not guard.unserved


def test_pixels_are_not_kept_as_latents(host: FakeHost, guard: Guard) -> None:
    """PiD's sampler makes the picture itself, and the host calls it latents all the same."""
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(host.generate(pixels, decode=lambda _, given: given), pixels)
    assert (guard.kept.items(), host.noted) == ([], {})


def test_a_black_picture_of_a_host_that_goes_on(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    """Forge Neo raises nothing; the latents are kept, for another VAE may decode them."""
    assert host.loaded is not None
    host.goes_on_black = True
    sound = host.loaded.module.decoder.conv_out.weight.clone()
    host.loaded.module.decoder.conv_out.weight.fill_(float("nan"))
    picture = host.generate(latents)
    assert picture.shape == (len(latents), 3, latents.shape[2] * 2, latents.shape[3] * 2)
    assert torch.isnan(picture).all()
    assert host.noted == {}
    first, second = host.told
    assert "the picture is black. The VAE gave NaN or infinite numbers even in fp32" in first
    assert "it is not lost" in second
    (kept,) = guard.kept.items()
    assert (kept.route, kept.is_unfinished) == (None, True)
    with pytest.raises(InputError, match="even in fp32"):
        decode_again(guard, kept)
    host.loaded.module.decoder.conv_out.weight.copy_(sound)
    host.generate(torch.full_like(latents, float("nan")))  # the UNet's: nothing to keep
    assert "the diffusion model (UNet) failed, not the VAE" in host.told[2]
    assert len(host.told) == 3


def test_nan_is_told_as_the_host_tells_it(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    assert host.loaded is not None
    host.loaded.module.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="even in fp32"):
        host.generate(latents)


def restarted(host: FakeHost) -> Guard:
    again = FakeHost(host.data, loaded=host.loaded)
    later = Guard(again)
    again.wrap(later)
    later.kept.restore()
    return later


def test_latents_of_a_failed_decode_are_kept_and_decoded_later(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match=r"CUDA out of memory\. VAE Guard: the picture could not be decoded"):
        host.generate(latents, decode=fail)
    held = guard.kept.items()[0]
    assert held.path is not None
    later = restarted(host)
    assert "1 picture was not finished" in later.host.told[0]  # type: ignore[attr-defined]
    (found,) = later.kept.items()
    pictures = decode_again(later, found, saved=True)
    assert len(pictures) == 1
    assert pictures[0][1] == "a cup\nSteps: 2, Seed: 7, Size: 32x32, VAE Guard: full; decoded again"
    assert later.kept.items() == []
    assert not held.path.exists()
    assert later.host.saved == pictures  # type: ignore[attr-defined]


def test_latents_of_a_checkpoint_that_is_gone(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    host.generate(latents)
    assert host.loaded is not None
    own, host.checkpoints = host.loaded, ()
    assert len(decode_again(guard, guard.kept.items()[0])) == 1  # another of its family is loaded
    host.loaded = FakeVAE(own.module, space=LatentSpace(0.1))
    with pytest.raises(InputError, match="another family"):
        decode_again(guard, guard.kept.items()[0])
    host.loaded = None
    with pytest.raises(InputError, match=r"No checkpoint is loaded yet.*latents are of small"):
        decode_again(guard, guard.kept.items()[0])
    assert len(guard.kept.items()) == 1


def test_an_approximate_picture_keeps_its_file_until_it_is_exact(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    weights.save_taesd(host.folders().taesd)
    host.values["vae_guard_fallback"] = ["TAESD"]
    host.generate(latents, Request(True, "Auto", 1000.0))
    assert "The latents stay on disk until you have it decoded in full" in host.told[-1]
    later = restarted(host)
    assert later.host.told == []  # type: ignore[attr-defined] # nothing failed
    (item,) = later.kept.unfinished()
    assert item.is_approximate
    ((image, text),) = decode_again(later, item)
    assert image.size == (8, 8)  # which is that of the small VAE
    assert text.endswith("VAE Guard: full; decoded again")
    assert (later.kept.unfinished(), item.is_approximate) == ([], False)


def test_without_room_on_disk_the_promise_is_a_smaller_one(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    weights.save_taesd(host.folders().taesd)
    host.values |= {"vae_guard_fallback": ["TAESD"], "vae_guard_disk": 0}
    host.generate(latents, Request(True, "Auto", 1000.0))
    assert "The latents are kept for the next 4 generations" in host.told[-1]
    host.values["vae_guard_keep"] = 0
    host.generate(latents, Request(True, "Auto", 999.0))
    assert "atents" not in host.told[-1]


def test_what_is_being_decoded_is_not_listed(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    listed = []

    def decode(module: Any, given: Tensor) -> Tensor:
        listed.append((guard.kept.items(), list(guard.kept.folder.iterdir())))
        return decoded(module, given)

    host.generate(latents, decode=decode)
    ((items, (file,)),) = listed
    assert items == []
    assert not file.exists()
    assert [item.route for item in guard.kept.items()] == ["full"]


def test_the_latents_of_whole_generations_are_kept(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    host.values["vae_guard_keep"] = 2
    for _ in range(3):
        host.generate(latents, batches=3)
    assert len(guard.kept.items()) == 2 * 3


def test_a_decode_that_is_stopped_keeps_the_latents(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(RuntimeError):
        host.generate(torch.cat([latents, latents]), decode=fail)
    (item,) = guard.kept.unfinished()
    with pytest.raises(Cancelled):
        decode_again(guard, item, cancelled=lambda: True)
    assert guard.kept.unfinished() == [item]


def test_what_others_did_after_the_decode_is_named(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    host.generate(latents)
    assert not_repeated(guard.kept.items()) == ""
    host.not_repeated = ("ADetailer",)
    host.generate(latents)
    assert not_repeated(guard.kept.items()) == (
        "ADetailer, which may work on a picture after its decode, was not repeated."
    )


def test_taesd_is_used_where_it_is_and_its_picture_marked(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    weights.save_taesd(host.folders().taesd)
    picture = host.generate(latents, Request(True, "TAESD"))
    assert host.noted["VAE Guard"] == "TAESD"
    assert guard.kept.items()[0].is_approximate
    exact = host.generate(latents, Request(False, "Full"))
    assert picture.shape != exact.shape  # a real TAESD enlarges by 8, this small VAE by 2
    assert not guard.kept.items()[0].is_approximate


@pytest.mark.parametrize("factor", [0.13025, 0.08333, 0.5])
def test_taesd_is_that_of_the_loaded_models_space_whatever_its_flags_say(
    factor: float, host: FakeHost, guard: Guard, latents: Tensor
) -> None:
    """A1111 calls the x4 upscaler SD2. SD1's TAESD is there, and takes other latents."""
    assert host.loaded is not None
    weights.save_taesd(host.folders().taesd)
    host.loaded = FakeVAE(host.loaded.module, space=LatentSpace(factor))
    host.generate(latents, Request(True, "TAESD"))
    assert host.noted["VAE Guard"] != "TAESD"
    assert not guard.kept.items()[0].is_approximate


def test_an_encode_gives_the_hosts_moments(host: FakeHost, guard: Guard) -> None:
    assert host.loaded is not None
    module, image = host.loaded.module, torch.rand(1, 3, 16, 16) * 2 - 1
    wanted = module.quant_conv(module.encoder(image))
    with guard.guarding():
        moments = module.quant_conv(module.encoder(image))
    assert distance(moments, wanted) < 1e-5


def test_the_reserve_is_left_free(host: FakeHost, guard: Guard) -> None:
    host.values["vae_guard_reserve"] = 65536
    usable = guard.available_bytes(host.device())
    host.values["vae_guard_reserve"] = 0
    assert usable < guard.available_bytes(host.device())


def test_nothing_allowed_that_fits_ends_in_the_hosts_own(
    host: FakeHost, guard: Guard, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "available_bytes", lambda device: 1000)
    host.values["vae_guard_fallback"] = ["Tiled"]
    host.generate(latents)
    assert host.noted == {"VAE Guard": "the WebUI's own decode"}
    assert "is not enough for decoding" in host.told[0]
    assert "The WebUI's own code was used instead." in host.told[0]
    host.generate(torch.cat([latents, latents]))
    assert len(host.told) == 2  # once for each batch


def test_files_in_use_that_windows_would_keep(host: FakeHost, guard: Guard, latents: Tensor) -> None:
    """Of latents that were read from a file nothing stays open or mapped: it can be removed, or renamed."""

    def fail(*args: Any) -> Tensor:
        raise RuntimeError("CUDA out of memory.")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="its latents are in"):
            host.generate(latents, decode=fail)
    with files_in_use_stay():
        later = restarted(host)
        first, second = later.kept.items()
        assert first.path is not None
        renamed = unfinished.mark_approximate(first.path)
        assert renamed.is_file()
        decode_again(later, second, saved=True)
        assert second.path is None or not second.path.exists()
    assert later.host.told[1:] == []  # type: ignore[attr-defined]
