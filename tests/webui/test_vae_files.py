"""VAE files chosen in the host's dropdown: of another layout, of one name, wrong, gone."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import corpus, odd
from tests.webui import host as hosts
from tests.webui import weights
from tests.webui.host import Host, Picture
from tests.webui.test_pictures import assert_same
from vae_lib.checkpoints import identify
from vae_lib.errors import CheckpointError


@pytest.fixture(autouse=True)
def _put_back(host: Host) -> Iterator[None]:
    yield
    host.use_vae("None")


def in_use(host: Host) -> str | None:
    path = host.vae_in_use()
    return path and path.rpartition("/")[2]


def assert_names_the_vae(picture: Picture, stem: str) -> None:
    wanted = f"Module 1: {stem}" if hosts.IS_FORGE else f"VAE: {stem}.safetensors"
    assert wanted in picture.infotext


reads_files_itself = pytest.mark.skipif(
    hosts.IS_FORGE, reason="Forge recognises and reads files of VAEs itself, by code of its own"
)


def test_a_file_of_diffusers_loads_like_any_other(host: Host, without: dict[str, Picture]) -> None:
    host.use_vae("other.safetensors")
    usual = host.generate()
    assert not np.array_equal(usual.images[0], without["txt2img"].images[0])
    host.use_vae("None")
    host.use_vae("other-diffusers.safetensors")
    assert in_use(host) == "other-diffusers.safetensors"
    converted = host.generate()
    assert_same(converted, usual)
    assert "VAE Guard: full" in converted.infotext
    assert_names_the_vae(converted, "other-diffusers")


def test_after_a_change_of_the_vae_the_new_weights_are_used(host: Host, without: dict[str, Picture]) -> None:
    host.generate()
    if not hosts.IS_FORGE:
        host.post("/probe/note-checkpoint")
    host.use_vae("other.safetensors")
    other = host.generate(guard=[False, "Tiled", 0])
    host.use_vae("None")
    own = host.generate(guard=[False, "Tiled", 0])
    assert_same(own, without["txt2img"])
    assert not np.array_equal(other.images[0], own.images[0])


def test_override_settings_may_name_a_vae(host: Host, without: dict[str, Picture]) -> None:
    other = host.generate(override_settings=hosts.vae_setting("other-diffusers.safetensors"))
    assert_names_the_vae(other, "other-diffusers")
    assert in_use(host) is None
    host.use_vae("None")
    assert_same(host.generate(), without["txt2img"])


@reads_files_itself
@pytest.mark.parametrize("before", ["None", "other.safetensors"])
def test_a_wrong_file_leaves_the_vae_that_was_in_use(host: Host, before: str) -> None:
    host.use_vae(before)
    earlier, used = host.generate(), in_use(host)
    host.use_vae("wrong.safetensors")
    assert in_use(host) == used
    assert_same(host.generate(), earlier)
    assert "wrong.safetensors" in host.log()
    assert "stays in use" in host.log()


@reads_files_itself
def test_the_dropdown_says_what_inspect_says(host: Host, without: dict[str, Picture]) -> None:
    folder = host.data / "models/VAE/odd"
    folder.mkdir()
    files = odd.write(folder)
    host.post("/sdapi/v1/refresh-vae")
    try:
        for path in files:
            host.use_vae(path.name)
            assert in_use(host) is None
            if "TAESD" not in path.name:  # of those it says first that a full VAE is wanted
                with pytest.raises(CheckpointError) as raised:
                    identify(path)
                assert str(raised.value).rstrip(".") in host.log()
    finally:
        for path in files:
            path.unlink()
        host.post("/sdapi/v1/refresh-vae")
    assert_same(host.generate(), without["txt2img"])


@reads_files_itself
def test_a_file_that_vanished_leaves_the_vae_that_was_in_use(host: Host, without: dict[str, Picture]) -> None:
    path = weights.save_vae(host.data / "models/VAE/short-lived.safetensors", weights.vae(4))
    host.post("/sdapi/v1/refresh-vae")
    assert "short-lived.safetensors" in host.vaes()
    path.unlink()
    host.use_vae("short-lived.safetensors")
    assert in_use(host) is None
    assert_same(host.generate(), without["txt2img"])


@reads_files_itself
def test_a_file_that_its_makers_called_sft(host: Host, without: dict[str, Picture]) -> None:
    host.use_vae("other.safetensors")
    usual = host.generate()
    host.use_vae("None")
    path = host.data / "models/VAE/other-too.sft"
    shutil.copy(host.data / "models/VAE/other.safetensors", path)
    host.post("/sdapi/v1/refresh-vae")
    try:
        host.use_vae("other-too.sft")
        assert in_use(host) == "other-too.sft"
        assert_same(host.generate(), usual)
    finally:
        host.use_vae("None")
        path.unlink()
        host.post("/sdapi/v1/refresh-vae")


@reads_files_itself
def test_a_vae_chosen_on_the_command_line(tmp_path: Path, without: dict[str, Picture]) -> None:
    hosts.prepare_data(tmp_path)
    file = tmp_path / "models/VAE/other.safetensors"
    running = hosts.start(tmp_path, "--vae-path", str(file), disabled=[hosts.EXTENSION])
    try:
        plain = running.generate()
        running.enable(True)
        ours = running.generate(guard=[False, "Tiled", 0])
    finally:
        running.stop()
    assert_same(ours, plain)
    assert "VAE: other.safetensors" in ours.infotext
    assert not np.array_equal(ours.images[0], without["txt2img"].images[0])


@reads_files_itself
def test_two_files_of_one_name_can_both_be_chosen(host: Host) -> None:
    twins = {name: path for name, path in host.vaes().items() if "twin" in name}
    assert sorted(path.rpartition("VAE/")[2] for path in twins.values()) == [
        "a/twin.safetensors",
        "b/twin.safetensors",
    ]
    pictures = []
    for name, path in twins.items():
        host.use_vae(name)
        assert host.vae_in_use() == path
        pictures.append(host.generate().images[0])
    assert not np.array_equal(*pictures)


@reads_files_itself
@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_in_a_circle_lists_nothing_twice(host: Host) -> None:
    host.post("/sdapi/v1/refresh-vae")
    before = host.vaes()
    circle = host.data / "models/VAE/circle"
    circle.symlink_to(".", target_is_directory=True)
    try:
        host.post("/sdapi/v1/refresh-vae")
        after = {name: os.path.realpath(path) for name, path in host.vaes().items()}
    finally:
        circle.unlink()
        host.post("/sdapi/v1/refresh-vae")
    assert after == {name: os.path.realpath(path) for name, path in before.items()}


@reads_files_itself
def test_a_pickle_that_acts_is_not_handed_to_a_host_that_checks_nothing(tmp_path: Path) -> None:
    """With --disable-safe-unpickle the host's own loader would run it, and then be told that nothing was run."""
    hosts.prepare_data(tmp_path)
    canary, folder = tmp_path / "it ran", tmp_path / "models/VAE"
    acts = corpus.Runs(os.system, f"touch '{canary}'")
    torch.save({"state_dict": {"decoder.conv_in.weight": acts}}, folder / "acts.pt")
    (folder / "acts too.ckpt").write_bytes(corpus.legacy(pickle.dumps(acts, 2), []))
    (folder / "perhaps.pt").write_bytes(pickle.dumps(corpus.Runs(Path, "x"), 4))  # no weights, but no accusation
    running = hosts.start(tmp_path, "--disable-safe-unpickle")
    try:
        for name in ("acts.pt", "acts too.ckpt"):
            running.use_vae(name)
            assert in_use(running) is None
            assert f"{name} wants to run code when it is opened" in running.log()
        running.use_vae("perhaps.pt")
        assert in_use(running) is None
        assert "perhaps.pt contains a Python object that is not weights" in running.log()
        assert "VAE Guard: full" in running.generate().infotext
    finally:
        running.stop()
    assert not canary.exists()
