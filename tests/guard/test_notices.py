"""Messages reach the console, whatever it can show."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.guard.fake_host import FakeHost
from vae_lib.guard import Guard


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_console_that_cannot_show_a_letter(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices = Guard(FakeHost(tmp_path)).notices
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(shown, encoding=encoding, write_through=True))
    notices.tell("日本.safetensors is no VAE.", warning=True)
    wanted = "日本" if encoding == "utf-8" else "\\u65e5\\u672c"
    assert shown.getvalue().decode(encoding).strip() == f"VAE Guard: {wanted}.safetensors is no VAE."


def test_what_is_told_once_is_told_once(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    notices = Guard(host).notices
    for _ in range(2):
        notices.tell_once("a key", "something.")
    assert host.told == ["VAE Guard: something."]
