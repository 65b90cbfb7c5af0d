"""SD3: 16 latent channels, a shift besides the scale, and a VAE of another build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.webui import weights
from tests.webui.host import IS_REAL, ApiError, Host, Picture
from tests.webui.scenarios import SCENARIOS, SD3
from tests.webui.test_pictures import assert_same, entry
from vae_lib.cli import main

pytestmark = pytest.mark.skipif(IS_REAL, reason="SD3's text encoders are too large for tests")
Without = dict[str, Picture]


@pytest.fixture(autouse=True, scope="module")
def _sd1_again(host: Host) -> Iterator[None]:
    yield
    host.generate()


@pytest.mark.parametrize("name", ["SD3", "SD3, hires fix"])
@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM", "CPU"])
def test_same_picture_by_every_exact_way(host: Host, without: Without, name: str, decode_by: str) -> None:
    picture = host.generate(**SCENARIOS[name], guard=[False, decode_by, 0])
    assert_same(picture, without[name])
    assert entry(picture.infotext, "Model") == "small_sd3"
    assert entry(picture.infotext, "VAE Guard decode by") == decode_by


def test_decode_again(host: Host, without: Without) -> None:
    host.generate(**SD3, guard=[False, "Tiled", 0])
    kept = host.get("/vae-guard/latents")[0]
    assert (kept["model"], kept["width"], kept["decoded_by"]) == ("small_sd3", 128, "tiled")
    assert_same(host.decode_again(), without["SD3"])
    assert_same(host.generate(), without["txt2img"])
    assert_same(host.decode_again(1), without["SD3"])  # SD1 is loaded, which cannot take these latents
    assert_same(host.generate(), without["txt2img"])  # and what was chosen is loaded again


def test_unfinished_latents_on_the_command_line(host: Host, without: Without, tmp_path: Path) -> None:
    host.generate(**SD3)  # the model is loaded
    host.post("/probe/break")
    try:
        with pytest.raises(ApiError, match="its latents are in"):
            host.generate(**SD3)
    finally:
        host.post("/probe/mend")
    vae = weights.save_vae(tmp_path / "vae.safetensors", weights.vae_sd3())
    file, picture = host.get("/vae-guard/latents")[0]["file"], tmp_path / "picture.png"
    assert main(["decode", file, "--vae", str(vae), "-o", str(picture)]) == 0
    host.delete(host.kept())
    with Image.open(picture) as image:
        assert "Model: small_sd3" in image.info["parameters"]
        difference = np.asarray(image).astype(int) - without["SD3"].images[0]
    assert 0 <= difference.min() <= difference.max() <= 1  # it rounds, and the host cuts off


def test_a_vae_of_another_family_is_refused(host: Host, without: Without) -> None:
    host.generate(**SD3)
    host.post("/sdapi/v1/options", {"sd_vae": "other.safetensors"})
    try:
        assert host.get("/probe/state")["vae"] is None
        assert "other.safetensors has 4 latent channels" in host.log()
        assert_same(host.generate(**SD3), without["SD3"])
    finally:
        host.post("/sdapi/v1/options", {"sd_vae": "Automatic"})
