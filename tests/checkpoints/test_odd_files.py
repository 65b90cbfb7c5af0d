"""Every odd file, by every way in: inspect, plan, pull, the tab and decode say one and the same sentence."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import odd
from tests.networks.small import SD_SHAPED, network, weights_of
from vae_lib.checkpoints import identify, load_vae, save_safetensors
from vae_lib.cli import main
from vae_lib.errors import CheckpointError
from vae_lib.ui.library import Library
from vae_lib.ui.standalone import FolderBackend

ONLY_THEIR_NUMBERS = ("NaN",)  # nothing in the header tells


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return odd.write(tmp_path_factory.mktemp("odd"))


def said(function: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        function(path)
    return str(raised.value)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.removeprefix("vae_lib: ").removesuffix("\n")


@pytest.mark.slow
def test_each_is_refused_in_the_same_words_everywhere(
    files: dict[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_safetensors({"latents": torch.zeros(1, 4, 4, 4)}, tmp_path / "latents.safetensors")
    library = Library(FolderBackend(next(iter(files)).parent))
    library.rows()
    while library.hashing:
        time.sleep(0.01)
    rows = {row.name: row.problem for row in library.rows()}
    for path, wanted in files.items():
        sentence = said(load_vae, path)
        assert re.search(wanted, sentence), sentence
        assert path.name in sentence
        assert said(identify, path) == sentence
        assert told(capsys, "inspect", path) == sentence
        assert rows[path.name] == sentence
        if "TAESD" not in path.name:
            arguments = ("--vae", path, "-o", tmp_path / "x.png", "--device", "cpu")
            assert told(capsys, "decode", tmp_path / "latents.safetensors", *arguments) == sentence
        if "TAESD" not in path.name and path.stem not in ONLY_THEIR_NUMBERS:
            assert told(capsys, "plan", "--vae", path, "--width", 64, "--height", 64) == sentence


def test_half_a_vae_is_one_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    whole = weights_of(network(SD_SHAPED))
    mine = {key: value for key, value in whole.items() if key.startswith(("encoder.", "quant_conv."))}
    save_safetensors(mine, tmp_path / "x.safetensors")
    assert identify(tmp_path / "x.safetensors").explanation.endswith(" It holds only an encoder, so it cannot decode.")
