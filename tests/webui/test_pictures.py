"""With the extension the host makes the pictures that it makes without."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.webui.host import IS_FORGE, ApiError, Host, Picture
from tests.webui.scenarios import CHANGED, IMG2IMG, REFINER, SCENARIOS

Without = dict[str, Picture]
THRESHOLD_ALWAYS_MISSED = 1000.0  # GB


def assert_same(ours: Picture, host: Picture) -> None:
    """Up to rounding, whatever the instructions with which this machine computes.

    Two exact ways round differently, and what follows a decode (8 bits, an upscaler, an encode, more sampling)
    carries that on. So the pictures may differ by 1 of 255, anywhere; but each decode and encode on the way must be as
    near to the same one in float64 as the host's own.
    """
    assert len(ours.images) == len(host.images)
    for one, other in zip(ours.images, host.images, strict=True):
        assert_close(one, other)
    assert [operation for operation, _ in ours.distances] == [operation for operation, _ in host.distances]
    assert ours.distances
    for (operation, one), (_, other) in zip(ours.distances, host.distances, strict=True):
        assert one <= 1.5 * other, f"{operation}: {one:.3g} from float64, and the host's own {other:.3g}"


def assert_close(one: np.ndarray, other: np.ndarray, most: int = 1) -> None:
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= most


def entry(infotext: str, key: str = "VAE Guard") -> str | None:
    """An entry of the infotext's last line."""
    for part in infotext.splitlines()[-1].split(", " + key + ": ")[1:]:
        return part.split('"')[1] if part.startswith('"') else part.split(", ")[0]
    return None


def test_the_reference_pictures_are_worth_comparing_with(without: Without) -> None:
    for name, picture in without.items():
        for image in picture.images:
            assert image.std() > 10, name
    if not IS_FORGE:  # which has neither of the three
        for name in ("tiling", "refiner", "per-checkpoint VAE"):
            assert not np.array_equal(without[name].images[0], without["txt2img"].images[0])
        assert entry(without["per-checkpoint VAE"].infotext, "VAE") == "other.safetensors"
    one, other = without["hires fix, picture"], without["hires fix, another checkpoint"]
    assert not np.array_equal(one.images[0], other.images[0])
    assert all("VAE Guard" not in text for picture in without.values() for text in picture.infotexts)


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_picture_by_default(host: Host, without: Without, name: str) -> None:
    assert_same(host.generate(**SCENARIOS[name]), without[name])


@pytest.mark.parametrize("name", ["txt2img", "tiling", "hires fix, picture", "inpaint"])
@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM", "CPU"])
def test_same_picture_by_every_exact_way(host: Host, without: Without, name: str, decode_by: str) -> None:
    picture = host.generate(**SCENARIOS[name], guard=[False, decode_by, 0])
    assert_same(picture, without[name])
    told = {"Full": "full", "Tiled": "tiled", "Tiled + RAM": "offload|RAM", "CPU": "CPU"}[decode_by]
    done = entry(picture.infotext)
    assert done is not None
    assert any(word.lower() in done.lower() for word in told.split("|")), done
    assert entry(picture.infotext, "VAE Guard decode by") == decode_by


@pytest.mark.parametrize("name", CHANGED)
def test_layers_that_another_extension_changed(host: Host, without: Without, name: str) -> None:
    """Padding of every kind is decoded by us, all else by the host, and told once with the layer's name."""
    has_effect = not (IS_FORGE and name == "layers: one axis")  # its layers call their class's _conv_forward
    assert np.array_equal(without[name].images[0], without["txt2img"].images[0]) is not has_effect
    pads = name in ("layers: one axis", "layers: reflect")
    for decode_by in ("Full", "Tiled", "Tiled + RAM"):
        picture = host.generate(**CHANGED[name], guard=[False, decode_by, 0])
        assert_same(picture, without[name])
        done = entry(picture.infotext)
        assert (done == "the WebUI's own decode") is not pads
    if not pads:
        what = "has a hook of" if name == "layers: hook" else "was replaced by a Adapted of"
        assert host.log().count(f"The VAE's layer decoder.mid.block_1.conv1 {what}") == 1
    assert_same(host.generate(), without["txt2img"])


def test_after_the_refiner_the_next_generation_is_the_first_checkpoints(host: Host, without: Without) -> None:
    for decode_by in ("Full", "Tiled", "Tiled + RAM"):
        refined = host.generate(**REFINER, guard=[False, decode_by, 0])
        assert_same(refined, without["refiner"])
        assert "small_refiner" in (entry(refined.infotext, "Refiner") or "")
    assert host.get("/vae-guard/latents")[0]["model"] == "small_refiner"
    again = host.decode_again()
    assert_same(again, without["refiner"])
    usual = host.generate()
    assert_same(usual, without["txt2img"])
    assert entry(usual.infotext, "Model") == "small"


def test_a_missed_threshold_takes_the_tiled_way_and_says_so(host: Host, without: Without) -> None:
    picture = host.generate(guard=[True, "Auto", THRESHOLD_ALWAYS_MISSED])
    assert_same(picture, without["txt2img"])
    done = entry(picture.infotext)
    assert done is not None
    assert done.startswith("tiled")
    assert "1000 GB" in done
    assert re.search(r"VAE Guard: .*128x128.* in tiles", host.log())


def test_with_the_fallback_off_the_threshold_does_not_matter(host: Host) -> None:
    assert entry(host.generate(guard=[False, "Auto", THRESHOLD_ALWAYS_MISSED]).infotext) == "full"


def test_the_threshold_of_the_settings(host: Host, without: Without) -> None:
    with host.options(vae_guard_mode="Fixed threshold", vae_guard_threshold=THRESHOLD_ALWAYS_MISSED):
        fallen = host.generate(**SCENARIOS["hires fix, picture"])
        lower = host.generate(guard=[True, "Auto", 0.001])
    assert_same(fallen, without["hires fix, picture"])
    assert (entry(fallen.infotext) or "").startswith("tiled")
    assert (entry(fallen.infotext, "VAE Guard encode") or "").startswith("tiled")
    assert entry(lower.infotext) == "full"


def test_override_settings_count_for_one_generation(host: Host) -> None:
    values = {"vae_guard_mode": "Fixed threshold", "vae_guard_threshold": THRESHOLD_ALWAYS_MISSED}
    with host.options(vae_guard_mode="Automatic (by predicted need)", vae_guard_threshold=4.0):
        assert (entry(host.generate(override_settings=values).infotext) or "").startswith("tiled")
        assert entry(host.generate().infotext) == "full"


def test_img2img_encodes_by_the_threshold_too(host: Host, without: Without) -> None:
    picture = host.generate(**IMG2IMG, guard=[True, "Auto", THRESHOLD_ALWAYS_MISSED])
    assert_same(picture, without["img2img"])
    assert (entry(picture.infotext, "VAE Guard encode") or "").startswith("tiled")


def test_taesd_when_it_is_the_only_fallback(host: Host, without: Without) -> None:
    with host.options(vae_guard_fallback=["TAESD"]):
        picture = host.generate(guard=[True, "Auto", THRESHOLD_ALWAYS_MISSED])
    assert (entry(picture.infotext) or "").startswith("TAESD")
    assert picture.images[0].shape == (128, 128, 3)
    assert picture.images[0].std() > 10
    assert not np.array_equal(picture.images[0], without["txt2img"].images[0])
    assert re.search(r"VAE Guard: .* with TAESD", host.log())


def test_the_latents_of_a_taesd_picture_can_be_decoded_in_full(host: Host, without: Without) -> None:
    host.generate(guard=[False, "TAESD", 0])
    kept = host.get("/vae-guard/latents")
    assert (kept[0]["decoded_by"], kept[0]["width"], kept[0]["height"]) == ("taesd", 128, 128)
    again = host.decode_again()
    assert_same(again, without["txt2img"])
    assert "decoded again" in again.infotext
    for number in ("0", "99"):  # as they were asked for before 0.2
        with pytest.raises(ApiError, match=r"422.*Use the 'id' that GET /vae-guard/latents lists"):
            host.post(f"/vae-guard/latents/{number}/decode")


def test_a_taesd_that_cannot_be_read_is_told_and_the_exact_ways_do_without(host: Host, without: Without) -> None:
    file = host.data / "models/VAE-taesd/taesd_decoder.pth"
    whole = file.read_bytes()
    file.write_bytes(b"no weights")
    try:
        picture = host.generate(guard=[True, "Auto", THRESHOLD_ALWAYS_MISSED])
    finally:
        file.write_bytes(whole)
    assert_same(picture, without["txt2img"])
    assert (entry(picture.infotext) or "").startswith("tiled")
    assert "decoding by TAESD is not possible: taesd_decoder.pth" in host.log()


def test_a_setting_that_cannot_be_used_is_told_and_its_default_used(host: Host, without: Without) -> None:
    with host.options(vae_guard_fallback=["Tiled", "by magic"]):
        picture = host.generate(guard=[True, "Auto", THRESHOLD_ALWAYS_MISSED])
    assert_same(picture, without["txt2img"])
    assert 'vae_guard_fallback is ["Tiled", "by magic"] and must be a list of ' in host.log()


def test_arguments_by_name(host: Host, without: Without) -> None:
    by_name = host.generate(guard=[{"decode_by": "tiled"}])
    as_object = host.generate(guard={"decode_by": "Tiled", "fallback": True})
    for picture in (by_name, as_object):
        assert_same(picture, without["txt2img"])
        assert (entry(picture.infotext) or "").startswith("tiled")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([True, "by magic", 0], "decode_by"),
        ([True, 3, 0], "decode_by"),
        (["yes", "Auto", 0], "fallback"),
        ([True, "Auto", -1], "threshold"),
        ([True, "Auto", "lots"], "threshold"),
        ([True, "Auto", 1e9], "threshold"),
        ([{"decode": "Tiled"}], "decode"),
        ({"threshold": True}, "threshold"),
        ([True, "Auto", 0, 5], "4"),
        ("Tiled", "args"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_the_apis_error_and_named(host: Host, arguments: object, named: str) -> None:
    with pytest.raises(ApiError) as raised:
        host.generate(guard=arguments)
    assert raised.value.status == 422
    if not IS_FORGE:
        assert raised.value.body["error"] == "HTTPException"
    assert named in raised.value.body["detail"]
    assert "VAE Guard" in raised.value.body["detail"]


def test_the_infotext_can_be_read_back(host: Host) -> None:
    asked = host.generate(guard=[False, "Tiled + RAM", 2.5])
    params = host.post("/probe/parse", {"infotext": asked.infotext})
    wanted = {"VAE Guard decode by": "Tiled + RAM", "VAE Guard threshold": "2.5", "VAE Guard fallback": "off"}
    assert {key: params[key] for key in wanted} == wanted


def test_xyz_axes(host: Host) -> None:
    axes = host.get("/probe/axes")
    assert [axis for axis in axes if "VAE Guard" in axis] == [
        "[VAE Guard] Decode by",
        "[VAE Guard] Threshold",
    ]


def test_an_xyz_axis_counts_for_its_pictures(host: Host, without: Without) -> None:
    infos = host.get("/sdapi/v1/script-info")
    info = next(info for info in infos if info["name"] == "x/y/z plot" and not info["is_img2img"])
    arguments, wanted = [], ["Tiled", "CPU"]
    for argument in info["args"]:
        label, value = argument["label"], argument["value"]
        if label == "X type":
            value = argument["choices"].index("[VAE Guard] Decode by")
        elif label in ("Y type", "Z type"):
            value = 0
        elif label == "Include Sub Images":  # off in the real script: only the grid would come back
            value = True
        elif label == "X values":  # once as text; in the real script again as a list
            value = (
                wanted if "X values" in [info["args"][i]["label"] for i in range(len(arguments))] else ",".join(wanted)
            )
        arguments.append(value)
    plot = host.generate(script_name="x/y/z plot", script_args=arguments)
    for name in wanted:
        assert any(entry(text, "VAE Guard decode by") == name for text in plot.infotexts), name
    same = [image for image in plot.images if image.shape == without["txt2img"].images[0].shape]
    assert len(same) >= len(wanted)
    for image in same:
        assert_close(image, without["txt2img"].images[0])
