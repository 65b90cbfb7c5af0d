"""Which pictures of a gallery "Decode again in full" replaces: those that it decoded, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.guard.fake_host import FakeHost, decoded, side_by_side
from tests.networks.small import SMALL, latents_for
from tests.webui import weights
from vae_lib.guard import Guard, Request
from vae_lib.webui.again_button import AgainButton

Images = list[Image.Image]


class Page:
    """A host with a gallery, and what the host tells of the pictures in it."""

    def __init__(self, folder: Path) -> None:
        self.host: Any = FakeHost(folder)
        weights.save_taesd(self.host.folders().taesd)
        self.guard = Guard(self.host)
        self.host.wrap(self.guard)
        self.button = AgainButton(self.guard, self.host)
        self.gallery: Images = []
        self.texts: list[str] = []
        self.first = 0
        self.note = ""

    def generate(
        self,
        count: int = 1,
        seed: int = 1,
        among: Callable[[Images], Images] = list,
        grid: Sequence[Image.Image] = (),
        by: str = "TAESD",
    ) -> tuple[Images, list[str]]:
        """A batch of pictures and their infotexts; ``among`` is what the host returns them among."""
        latents = latents_for(SMALL, 2, 2, count, seed)
        p = SimpleNamespace(vae_guard=Request(True, by), seed=seed, vae_guard_again=None)
        module = self.host.loaded.module

        def own() -> torch.Tensor:
            with self.guard.guarding(scaled=latents):
                return decoded(module, latents)

        with self.guard.generation(p):
            made = self.guard.batch(None, latents, own)
            images = [as_image(one) for one in made]
            texts = self.host.infotexts(p, count)
            for image, text in zip(images, texts, strict=True):
                image.info["parameters"] = text
            self.guard.completed(texts, among(images), grid)
        return images, texts

    def show(self, gallery: Images, texts: list[str], first: int = 0) -> tuple[bool, str]:
        """Whether the button is there, and the sentence in its place."""
        self.gallery, self.texts, self.first = gallery, texts, first
        button, note = self.button._update(gallery, self.info())
        return button["visible"], note["value"] if note["visible"] else ""

    def info(self) -> str:
        return json.dumps({"infotexts": self.texts, "index_of_first_image": self.first})

    def press(self, selected: int = -1) -> tuple[Any, Any, Any, str]:
        """The gallery, its infotexts, the one that is shown, and the line below; as the page gets them."""
        now, info, shown, said = self.button._decode_again(
            "txt2img", "task(1)", self.gallery, self.info(), str(selected)
        )
        texts = json.loads(info)["infotexts"] if isinstance(info, str) else self.texts
        return now if isinstance(now, list) else self.gallery, texts, shown, said


def as_image(picture: torch.Tensor) -> Image.Image:
    pixels = ((picture + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0)  # (H, W, 3)
    return Image.fromarray(pixels.numpy().astype(np.uint8))


def is_decoded(image: Image.Image, text: str) -> bool:
    """Whether it is the exact picture of this infotext."""
    parameters = str(image.info.get("parameters"))
    return "decoded again" in parameters and parameters.startswith(text)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path)


def test_a_picture_is_replaced_by_its_own(page: Page) -> None:
    images, texts = page.generate(2)
    assert page.show(images, texts) == (True, "")
    now, told, shown, said = page.press()
    assert all(map(is_decoded, now, texts))
    assert all("decoded again" in text for text in told)
    assert "Seed: 1" in shown
    assert "2 pictures were decoded again in full" in said
    assert page.show(now, told) == (False, "")


def test_pictures_that_look_alike_keep_their_infotexts(page: Page) -> None:
    """Of a prompt matrix or an axis that makes no difference."""
    images, texts = [], []
    for prompt in ("a cup", "a cup of tea"):
        page.host.infotexts = lambda p, count, prompt=prompt: [f"{prompt}\nSteps: 2, Seed: 1"]
        (image,), (text,) = page.generate(1, 1)
        images.append(image)
        texts.append(text)
    page.show(images, texts)
    now, told, _, _ = page.press()
    assert all(map(is_decoded, now, texts))
    assert all(after.startswith(before) for after, before in zip(told, texts, strict=True))


def test_a_saved_picture_is_told_by_its_file(page: Page, tmp_path: Path) -> None:
    """The file may be a JPEG, whose pixels are others."""

    def saved(images: Images) -> Images:
        for number, image in enumerate(images):
            image.already_saved_as = str(tmp_path / f"{number}.jpg")  # type: ignore[attr-defined]
            image.save(tmp_path / f"{number}.jpg")
        return images

    _, texts = page.generate(2, among=saved)
    gallery: Any = [{"name": f"{tmp_path}/{number}.jpg?1700000000.5"} for number in range(2)]
    assert page.show(gallery, texts)[0]
    opened = [Image.open(tmp_path / f"{number}.jpg") for number in range(2)]  # as gradio 4 gives them
    assert page.show(opened, texts)[0]
    now, *_ = page.press()
    assert all(map(is_decoded, now, texts))


def test_a_file_that_the_host_did_not_show_is_not_shown(page: Page, tmp_path: Path) -> None:
    """The page names the gallery's files, and gradio would copy and serve whichever it is handed."""
    secret = tmp_path.with_name(f"{tmp_path.name} secret.png")
    images, texts = page.generate(1)
    images[0].save(secret)
    gallery: Any = [
        images[0],
        {"name": str(secret), "is_file": True},
        {"name": "/etc/passwd"},
        "//server/share/a.png",
    ]
    assert page.show(gallery, texts)[0]
    now, *_ = page.press()
    assert len(now) == 1
    assert is_decoded(now[0], texts[0])
    assert not page.show([{"name": str(secret)}], texts)[0]  # not even looked at


def test_what_a_script_made_of_tiles_stays(page: Page) -> None:
    """SD upscale, outpainting: one picture of many that overlap, under the first one's infotext."""
    tiles = [page.generate(1, seed) for seed in (1, 2)]
    whole = side_by_side([images[0] for images, _ in tiles])
    whole.paste(tiles[1][0][0], (8, 0))  # whole in it; of the first one there is half
    visible, note = page.show([whole], tiles[0][1])
    assert not visible
    assert "VAE &gt; Unfinished" in note
    now, texts, _, said = page.press()
    assert now == [whole]
    assert texts == tiles[0][1]
    assert "nothing in this gallery to decode again" in said
    assert len(page.guard.kept.unfinished()) == 2
    assert page.show([], tiles[0][1]) == (False, "")  # the host's "Do not show any images in gallery"


def as_large(image: Image.Image) -> Image.Image:
    """As TAESD's are: the small network of the tests has fewer levels."""
    return image.resize((16, 16), Image.Resampling.NEAREST)


def drawn(pictures: Images) -> Image.Image:
    """As X/Y/Z does it: with a margin for words, and white between the pictures."""
    grid = Image.new("RGB", (10 + sum(one.width + 3 for one in pictures), 9 + pictures[0].height), "white")
    for number, one in enumerate(pictures):
        grid.paste(one, (10 + number * (one.width + 3), 9))
    return grid


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with the pictures"])
def test_a_scripts_grid_is_put_together_again(page: Page, alone: bool) -> None:
    """Loopback, prompt matrix, X/Y/Z, which shows the pictures beside the grid or does not."""
    finish = page.host.finish
    page.host.finish = lambda *given: [(as_large(image), text) for image, text in finish(*given)]
    made = [page.generate(1, seed) for seed in (1, 1, 2)][1:]  # the first one twice
    pictures, texts = [images[0] for images, _ in made], [text for _, (text,) in made]
    gallery = [drawn(pictures), drawn([*pictures, pictures[0]]), *([] if alone else pictures)]
    told = [texts[0], texts[1], *([] if alone else texts)]
    assert page.show(gallery, told, 1) == (True, "")
    now, infotexts, shown, said = page.press(selected=1)
    assert len(now) == len(gallery)
    assert all("decoded again" in text for text in infotexts)
    assert [text.split(",")[1] for text in infotexts] == [text.split(",")[1] for text in told]
    assert "Seed: 2" in shown
    assert "pictures were decoded again in full" in said
    assert page.show(now, infotexts, 1)[0] is False
    exact = [as_large(page.generate(1, seed, by="Full")[0][0]) for seed in (1, 2)]
    for one, wanted in zip(now, [drawn(exact), drawn([*exact, exact[0]]), *exact], strict=False):
        assert np.array_equal(np.asarray(one), np.asarray(wanted))


def test_the_hosts_own_grid_is_made_again(page: Page) -> None:
    drawn: Images = []

    def with_grid(images: Images) -> Images:
        drawn.append(side_by_side(images))
        return images

    class Late(list[Image.Image]):
        """The grid exists when the generation is over."""

        def __len__(self) -> int:
            return len(drawn)

        def __getitem__(self, index: Any) -> Any:
            return drawn[index]

    images, texts = page.generate(2, among=with_grid, grid=Late())
    page.show([drawn[0], *images], [texts[0], *texts], 1)
    now, told, _, said = page.press()
    assert all(map(is_decoded, now[1:], texts))
    assert all("decoded again" in text for text in told)  # the grid has the first one's
    assert np.array_equal(np.asarray(now[0]), np.asarray(side_by_side(now[1:])))
    assert "as they were" not in said


@pytest.mark.parametrize("interleaved", [True, False], ids=["masks", "maps at the end"])
def test_masks_and_maps_stay(page: Page, interleaved: bool) -> None:
    """``return_mask`` puts them between the pictures, ControlNet its maps behind them."""
    others = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]

    def among(images: Images) -> Images:
        pairs = [list(pair) for pair in zip(images, others, strict=True)]
        return [one for pair in pairs for one in pair] if interleaved else [*images, *others]

    images, texts = page.generate(2, among=among)
    shown = among(images)
    assert page.show(shown, texts)[0]
    now, told, _, _ = page.press()
    assert [is_decoded(one, "") for one in now] == [one in images for one in shown]
    assert all("decoded again" in text for text in told)


def test_pictures_that_are_not_marked_stay(page: Page) -> None:
    """With the host's infotexts in files switched off nothing tells a picture from a mask beside it."""

    def among(images: Images) -> Images:
        for image in images:
            image.info.clear()
        return [*images, Image.new("RGB", (4, 4))]

    images, texts = page.generate(2, among=among)
    assert not page.show(among(images), texts)[0]


def test_an_interrupted_decode_leaves_the_rest(page: Page) -> None:
    images, texts = page.generate(2)
    page.host.is_interrupted = lambda: True
    page.show(images, texts)
    now, told, _, said = page.press()
    assert (now, told) == (images, texts)
    assert "error" in said
    assert page.show(images, texts)[0]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["TAESD", "Full"])), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    left_out=st.sets(st.integers(0, 6)),
    foreign=st.integers(0, 2),
)
def test_nothing_is_replaced_by_another_picture(
    tmp_path_factory: pytest.TempPathFactory, batches: Any, order: Any, left_out: set[int], foreign: int
) -> None:
    """A walk over galleries: any pictures, in any order, with some missing and some of nobody's."""
    page = Page(tmp_path_factory.mktemp("page"))
    made: list[tuple[Image.Image, str, bool]] = []
    for number, (count, by) in enumerate(batches):
        images, texts = page.generate(count, 10 * number + 1, by=by)
        made += [(image, text, by == "TAESD") for image, text in zip(images, texts, strict=True)]
    made = [one for place, one in enumerate(made) if place not in left_out]
    made += [(Image.new("RGB", (4, 4), (shade, 9, 9)), "somebody else's", False) for shade in range(foreign)]
    order.shuffle(made)
    kept = page.guard.kept.items()
    page.show([image for image, *_ in made], [text for _, text, _ in made])
    now, texts, _, _ = page.press()
    assert len(now) == len(made)
    for (before, text, approximate), after, told in zip(made, now, texts, strict=True):
        if not approximate:
            assert after is before
            assert told == text
        elif after is before:  # more batches than are kept, and no file
            assert not any(text in item.infotexts for item in kept)
        else:
            assert is_decoded(after, text)
            assert told.startswith(text)
