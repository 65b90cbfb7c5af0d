"""Our entries in an infotext, written, pasted and replaced."""

from __future__ import annotations

import pytest

from vae_lib.guard import infotext

# As version 0.1.0's predecessors wrote them.
OLD = {"VAE Guard": "tiled, 48-row bands; full would need 4.3 GB", "VAE Guard decode by": "Tiled + RAM",
       "VAE Guard threshold": "2.5", "VAE Guard fallback": "off"}  # fmt: skip


def test_old_infotexts_paste() -> None:
    assert infotext.pasted_decode_by(OLD) == "Tiled + RAM"
    assert infotext.pasted_threshold(OLD) == 2.5
    assert infotext.pasted_fallback(OLD) is False


@pytest.mark.parametrize(
    "params",
    [{}, {"VAE Guard decode by": "Sideways", "VAE Guard threshold": "much"}, {"VAE Guard threshold": "-1"}],
)
def test_what_cannot_be_pasted_is_the_default(params: dict[str, str]) -> None:
    assert infotext.pasted_decode_by(params) == "Auto"
    assert infotext.pasted_threshold(params) == 0.0
    assert infotext.pasted_fallback(params) is True


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "VAE Guard: full; decoded again"),
        ("a\nSteps: 2, VAE Guard: TAESD, Version: v1", "a\nSteps: 2, VAE Guard: full; decoded again, Version: v1"),
        (
            'a "cup", red\nNegative prompt: b: c\nSteps: 2, VAE Guard: "TAESD, a: b", Lora hashes: "x: 1, y: 2"',
            'a "cup", red\nNegative prompt: b: c\nSteps: 2, VAE Guard: full; decoded again, Lora hashes: "x: 1, y: 2"',
        ),
    ],
)  # fmt: skip
def test_an_entry_is_replaced(before: str, after: str) -> None:
    assert infotext.replaced(before, "full", {}) == after


def test_what_needs_quotes_gets_them() -> None:
    assert infotext.replaced("x\nSteps: 2", 'tiled: 1, "2"', {}) == (
        'x\nSteps: 2, VAE Guard: "tiled: 1, \\"2\\"; decoded again"'
    )


def test_another_vae_is_named() -> None:
    before = "x\nSteps: 2, VAE hash: 12ab, VAE: old.pt, VAE Guard encode: tiled, VAE Guard decode by: TAESD"
    assert infotext.replaced(before, "full", {"VAE hash": "34cd", "VAE": "new: one.pt"}) == (
        'x\nSteps: 2, VAE hash: 34cd, VAE: "new: one.pt", VAE Guard encode: tiled, VAE Guard: full; decoded again'
    )
    assert infotext.replaced(before, "full", {"VAE hash": None, "VAE": None}) == (
        "x\nSteps: 2, VAE Guard encode: tiled, VAE Guard: full; decoded again"
    )


def test_prompt_and_seeds_for_a_list() -> None:
    text = "a cup\nof tea\nNegative prompt: blurry\nSteps: 2, Seed: {}, Size: 8x8"
    assert infotext.prompt_and_seeds([text.format(5), text.format(6)]) == ("a cup of tea", "5, …")
    assert infotext.prompt_and_seeds(["Steps: 2, Seed: 5"]) == ("", "5")
    assert infotext.prompt_and_seeds(["x" * 100 + "\nSteps: 2"]) == ("x" * 80 + "…", "")
    assert infotext.prompt_and_seeds([]) == ("", "")
