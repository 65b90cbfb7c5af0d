"""Tables and notes as HTML."""

from __future__ import annotations

import re

import pytest

from vae_lib.ui.markup import table


@pytest.mark.parametrize("kind", ["", "vg-num"])
def test_a_table_has_its_heads_whatever_is_in_its_columns(kind: str) -> None:
    made = table(("Time", "Seed"), [[("20:22", ""), ("1", kind)]])
    heads = re.findall(r'<th class="([^"]*)">([^<]*)</th>', made)
    assert heads == [("", "Time"), (kind, "Seed")]
