"""The forks of Forge: their ways to a picture, with stand-ins for their packages on the host double's ``modules``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hosts import in_double

pytestmark = pytest.mark.slow  # a process for each

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", params=["forge", "reforge", "neo"])
def answer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    flavours = HERE / "flavours"
    more = (flavours / "forge",) if request.param == "neo" else ()
    said = in_double.run(
        HERE / "run_flavour.py", data=tmp_path_factory.mktemp(request.param),
        first=(flavours / request.param, *more, flavours / "shared"),
    )  # fmt: skip
    assert "made by the test" in said.errors  # told, with its report
    found: dict[str, Any] = said.answer()
    assert found["host"] == f"vae_lib.hosts.{request.param}"
    return found


def test_the_pictures_and_latents_are_the_hosts(answer: dict[str, Any]) -> None:
    assert 0 < answer["pictures"] < 1e-4
    assert 0 <= answer["latents"] < 1e-4
    assert answer["records"] == ["decode", "decode", "encode"]
    assert answer["noted"]["VAE Guard"].startswith("tiled")
    assert answer["family"] == "SD1"
    assert answer["factors"] == [0.18215, 0.0]


def test_the_memory_manager_is_asked_for_less(answer: dict[str, Any]) -> None:
    ours, plain = answer["asked"]
    assert len(ours) == len(plain) == 3  # two decodes, an encode
    assert all(1 < asked <= plain_asked for asked, plain_asked in zip(ours, plain, strict=True))
    assert ours[0] < plain[0] / 4
    assert answer["always_tiled"] is True  # it is the user's again


def test_when_ours_fails_the_hosts_own_way_is_whole(answer: dict[str, Any]) -> None:
    assert answer["tiles"] == [2, 3, 64, 80]
    assert answer["noted then"] == {"VAE Guard": "the WebUI's own decode"}
    ours, theirs, *again = answer["asked then"]
    assert ours < theirs == answer["asked"][1][0]
    assert again == [ours, theirs]  # the second picture's
    assert answer["own again"]


def test_forges_own_list_shows_what_the_tab_chose(answer: dict[str, Any]) -> None:
    if answer["host"] == "vae_lib.hosts.reforge":
        pytest.skip("the setting is A1111's")
    names = ["vae.safetensors", "clip.safetensors"]
    before, after, shown = answer["chosen"]
    assert (before, after) == (None, "vae.safetensors")
    assert shown == {"choices": names, "value": names[::-1]}
    assert answer["dropdowns"] == ["VAE / Text Encoder"]
    if answer["host"] == "vae_lib.hosts.neo":
        assert answer["presets"][-1].endswith("vae.safetensors")  # its next change keeps it


def test_neos_packed_latents(answer: dict[str, Any]) -> None:
    """FLUX.2's: unpacked outside of the halves that are ours."""
    if answer["host"] != "vae_lib.hosts.neo":
        pytest.skip("only Neo has them")
    found = answer["packed"]
    assert 0 < found["pictures"] < 1e-4
    assert found["encoded"] < 1e-4
    assert found["taesd"] < 1e-4
    assert found["family"] == "FLUX.2"
    assert found["kept"] == [[64, 48]]
    ours, plain = found["asked"]
    assert all(1 < asked < own / 4 for asked, own in zip(ours, plain, strict=True))


def test_neos_frames(answer: dict[str, Any]) -> None:
    """Wan's VAE: one frame is a picture, several are a video; that is in no list, and lost by no failure."""
    if answer["host"] != "vae_lib.hosts.neo":
        pytest.skip("only Neo has them")
    found = answer["frames"]
    assert 0 < found["pictures"] < 1e-5
    assert found["shape"] == [2, 1, 3, 24, 32]
    assert found["encoded"] < 1e-5
    assert found["route"] == "tiled"
    ours, plain = found["asked"]
    assert all(1 < asked < own / 4 for asked, own in zip(ours, plain, strict=True))
    assert found["kept"] == [[2, 16, 6, 8], [2, 16, 1, 6, 8]]
    assert found["a kept picture"] < 1e-6
    shape, error = found["video"]
    assert shape == [2, 9, 3, 24, 32]
    assert 0 < error < 1e-5
    assert 0 < found["by TAESD"] < 1e-5  # which has no place there: it is decoded exactly
    shape, error = found["latents"]
    assert shape == [1, 16, 2, 8, 10]
    assert 0 < error < 1e-5
    ours, plain = found["asked for the video"]
    assert all(1 < asked < own for asked, own in zip(ours, plain, strict=True))
    assert not any("video" in text for text in found["told"])
    before, after, files = found["kept of the video"]
    assert (before - after, files) == (0, 0)
    error, (path,) = found["failed"]
    assert error.startswith("division by zero VAE Guard: the video could not be decoded, but it is not lost")
    assert path in error


def test_an_error_that_says_where_the_latents_are_is_not_dropped(answer: dict[str, Any]) -> None:
    assert answer["errors"] == [None, "ours"]
