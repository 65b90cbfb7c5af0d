"""SD.Next, whose VAE is diffusers': the real network, small, below stand-ins for its modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hosts import in_double
from tests.hosts.test_choose import chosen

if TYPE_CHECKING:  # that it offers all that is asked for is for mypy to see
    from vae_lib.hosts.sdnext import Host
    from vae_lib.webui.host import WebUI

    _offers_all: type[WebUI] = Host

pytestmark = pytest.mark.slow  # a process for each

HERE = Path(__file__).resolve().parent
FLAVOUR = HERE / "flavours" / "sdnext"


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    said = in_double.run(HERE / "run_sdnext.py", data=tmp_path_factory.mktemp("sdnext"), first=(FLAVOUR,))
    found: dict[str, Any] = said.answer()
    return found


def test_the_pictures_are_the_hosts_by_every_route(answer: dict[str, Any]) -> None:
    assert answer["host"] == "vae_lib.hosts.sdnext"
    assert len(answer["pictures"]) == 5 * 4
    for name, (worst, infotext) in answer["pictures"].items():
        route = name.partition(" by ")[2]
        assert worst <= 1, name
        done = "on the CPU" if route == "CPU" else route[0].lower() + route[1:]
        assert f"VAE Guard: {done}" in infotext
        assert f"VAE Guard decode by: {route}" in infotext


def test_what_a_pipeline_encodes_and_decodes_is_ours(answer: dict[str, Any]) -> None:
    assert answer["calls"]["img2img"] == ["encode", "decode"]
    assert answer["calls"]["hires"] == ["decode", "decode"]
    assert answer["outside"] == ["decode", "encode"]
    assert answer["left"] == []
    assert answer["own at last"] == [0, 0]


def test_the_latents_of_the_last_pass_are_kept(answer: dict[str, Any]) -> None:
    kept = {name: counts for name, (counts, _) in answer["kept"].items()}
    assert kept == {"txt2img": [1], "batch": [2], "n_iter": [1, 1], "img2img": [1], "hires": [1]}
    assert all(set(routes) == {"cpu"} for _, routes in answer["kept"].values())


def test_what_fails_in_the_decode_is_not_lost(answer: dict[str, Any]) -> None:
    pictures, told, unfinished = answer["lost"]
    assert (pictures, unfinished) == (0, 1)
    assert "it is not lost: its latents are in" in told[-1]
    again = answer["again"]
    assert again["worst"] <= 1
    assert again["infotext"].endswith("VAE Guard: full; decoded again")
    assert again["not repeated"] == ["Detailer"]
    assert answer["postprocessing"] == ["Sharpen"]
    assert (again["unfinished"], len(again["saved"]), again["own again"]) == (0, 1, True)


def test_nan_is_black_and_the_latents_stay(answer: dict[str, Any]) -> None:
    brightest, told = answer["black"]
    assert brightest == 0
    assert "the picture is black. The VAE gave NaN" in told[0]
    assert answer["again of NaN"].startswith("The VAE gave NaN")


def test_the_choice_of_a_vae(answer: dict[str, Any]) -> None:
    assert answer["chosen"] == [None, "other.safetensors", {"sd_vae": "other.safetensors"}, True]
    said, setting, in_use = answer["refused"]
    assert said == "none.safetensors was not loaded; the console says why."
    assert (setting, in_use) == ("other.safetensors", "other.safetensors")


def test_the_checkpoints_own_vae_comes_back(answer: dict[str, Any]) -> None:
    """Though SD.Next has lost it, and goes on naming the other one."""
    in_use, worst, named = answer["back"]
    assert (in_use, named) == (None, "other.safetensors")
    assert worst <= 1
    assert answer["by its own VAE"] == 0
    assert answer["afterwards"] is None
    assert "is not there any more" in answer["its VAE is gone"]


def test_a_vae_that_does_not_come_back_is_no_wrong_picture(answer: dict[str, Any]) -> None:
    """SD.Next has not loaded a checkpoint's own where it loaded the checkpoint with another."""
    assert "keeps the VAE until the model is reloaded" in answer["not automatic"]
    assert "did not put the VAE of these latents back" in answer["not own"]


def test_a_vae_without_a_network_is_left_alone(answer: dict[str, Any]) -> None:
    first, second, told, family = answer["unknown"]
    assert first is second is family is None
    assert all("no network for this model's VAE" in text for text in told)


def test_what_is_left_to_sdnext_is_said(answer: dict[str, Any]) -> None:
    worst, told, infotext = answer["aside"]
    assert worst == 0
    assert told == ["VAE Guard: the VAE's norms have 16 groups. The WebUI's own code was used instead."]
    assert infotext.endswith("VAE Guard: the WebUI's own decode")
    worst, told = answer["tiling"]
    assert worst <= 1
    assert told[0].startswith("VAE Guard: The VAE's tiling is switched on and would cut the picture into tiles")


def test_the_page_and_the_api(answer: dict[str, Any]) -> None:
    assert answer["script"]  # else it passes over the components that the script waits for
    assert (answer["has api"], answer["accounts"]) == (True, {"a user": "a password"})


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
@pytest.mark.parametrize("lacks", ["", "full_vae_encode"])
def test_it_is_told_from_its_relatives(tmp_path: Path, lacks: str) -> None:
    before = f"import sys; sys.path.insert(0, {str(FLAVOUR)!r}); import sdnext_webui; sdnext_webui.become()"
    if lacks:
        before += f"\nfrom modules import processing_vae; del processing_vae.{lacks}"
    answer, console = chosen(tmp_path, before)
    if not lacks:
        assert answer == ["vae_lib.hosts.sdnext", True, ["VAE"], 6, 0]
    else:
        assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
        assert "does not support this version of SD.Next yet: its own decode is used. The problem: full_vae" in console
