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
        ("a\nSteps: 2, VAE Guard: TAESD, Version: v1", "a\nSteps: 2, Version: v1, VAE Guard: full; decoded again"),
        (
            'a "cup", red\nNegative prompt: b: c\nSteps: 2, VAE Guard: "TAESD, a: b", Lora hashes: "x: 1, y: 2"',
            'a "cup", red\nNegative prompt: b: c\nSteps: 2, Lora hashes: "x: 1, y: 2", VAE Guard: full; decoded again',
        ),
    ],
)  # fmt: skip
def test_an_entry_is_replaced(before: str, after: str) -> None:
    assert infotext.replaced(before, "full") == after


def test_what_needs_quotes_gets_them() -> None:
    assert infotext.replaced("x\nSteps: 2", 'tiled: 1, "2"') == (
        'x\nSteps: 2, VAE Guard: "tiled: 1, \\"2\\"; decoded again"'
    )
