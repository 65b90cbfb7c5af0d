"""What *VAE > Unfinished* lists, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.guard.fake_host import FakeHost
from tests.networks.small import SMALL, latents_for
from tests.webui import weights
from vae_lib.guard import Guard, Request
from vae_lib.ui.unfinished_section import _table
from vae_lib.webui.unfinished import UnfinishedPictures


def test_what_was_wanted_by_taesd_is_told_apart(tmp_path: Path) -> None:
    host: Any = FakeHost(tmp_path, {"vae_guard_fallback": ["TAESD"]})
    weights.save_taesd(host.folders().taesd)
    guard = Guard(host)
    host.wrap(guard)
    latents = latents_for(SMALL, 8, 8)
    host.generate(latents, Request(True, "Auto", 1000.0))  # falls back to it
    host.generate(latents, Request(True, "TAESD"))
    listed = UnfinishedPictures(guard).listed()
    assert [(item.is_approximate, item.is_draft) for item in listed] == [(True, False), (True, True)]
    page = _table(listed, ())
    assert page.index("approximate") < page.index("TAESD, as chosen")
