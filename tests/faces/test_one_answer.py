"""One answer to "what would be done?": API, command line, VAE > Memory and Compare promise what a generation does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tests.guard.fake_host import SCALE, FakeHost, FakeVAE
from tests.networks.small import SD, latents_for, network
from vae_lib import cli
from vae_lib.checkpoints import save_safetensors
from vae_lib.decode import Ladder, Outcome
from vae_lib.device.kind import Speeds
from vae_lib.guard import Guard
from vae_lib.planning import Profile, Route, Work
from vae_lib.planning.profiles import KnownProfiles
from vae_lib.ui.backend import VAEFile
from vae_lib.ui.compare import AUTO, Comparer, Source
from vae_lib.ui.library import Library
from vae_lib.ui.markup import sentence
from vae_lib.ui.memory_section import MemorySection
from vae_lib.webui.api import Routes
from vae_lib.webui.tab import HostBackend

FREE = 3_000_000_000
SPEEDS = Speeds(3e9, 2e9, 1e9, 7e-6, 4e9)
SIDE = 64  # pixels
NAME = "small.safetensors"


class VAE(FakeVAE):
    """A WebUI has a method ``loaded`` where the fake has the VAE itself."""

    def __call__(self) -> FakeVAE:
        return self


class Host(FakeHost):
    """With a file of its VAE."""

    def vae_files(self) -> dict[str, Path]:
        return {NAME: self.data / NAME}

    def vae_folders(self) -> Sequence[Path]:
        return ()

    def checkpoint(self) -> None: ...


@pytest.fixture(params=["distrusted", "threshold"])
def host(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Its device is measured; ``full`` is distrusted there, or less is free than the user's threshold."""
    distrusted = frozenset({Route.FULL}) if request.param == "distrusted" else frozenset()

    def profile(_: object, work: Work) -> Profile:
        return replace(Profile.usual(work), speeds=SPEEDS, distrusted=distrusted)

    monkeypatch.setattr(KnownProfiles, "__call__", profile)
    for module in ("guard.guard", "cli.commands", "ui.backend"):
        monkeypatch.setattr(f"vae_lib.{module}.free_memory", lambda device: FREE)
    host = Host(tmp_path, loaded=VAE(network(SD)))
    host.values = {"vae_guard_reserve": 0, "vae_guard_threshold": 4.0}
    if request.param == "threshold":
        host.values["vae_guard_mode"] = "Fixed threshold"
    save_safetensors(network(SD).state_dict(), tmp_path / NAME, {"scaling_factor": str(SCALE)})
    return host


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Of the decodes that are really done."""
    done: list[Outcome] = []
    decode = Ladder.decode

    def noted(self: Ladder, *args: Any) -> Outcome:
        done.append(decode(self, *args))
        return done[-1]

    monkeypatch.setattr(Ladder, "decode", noted)
    return done


@pytest.mark.slow
def test_every_face_promises_what_a_generation_does(
    host: Host, outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    guard = Guard(host)
    host.wrap(guard)
    backend = HostBackend(guard, host, SimpleNamespace(manager=lambda: None))  # type: ignore[arg-type]
    latents = latents_for(SD, SIDE // 8, SIDE // 8)
    host.generate(latents)
    plan = outcomes[-1].plan
    assert plan.route is Route.TILED
    route, seconds = plan.route.value, plan.seconds

    api = Routes(guard, host, None).plan(SIDE, SIDE)  # type: ignore[arg-type]
    assert (api["chosen"]["route"], api["chosen"]["seconds"]) == (route, round(seconds, 3))
    assert api["routes"][route]["seconds"] == round(seconds, 3)

    about = pytest.approx(seconds, rel=0.005)  # the host calls us after the file's 1x1 convolution of the latents
    threshold = ["--threshold", "4GB"] if "vae_guard_mode" in host.values else []
    capsys.readouterr()
    size = ["--width", str(SIDE), "--height", str(SIDE)]
    assert cli.main(["plan", "--vae", str(host.data / NAME), *size, *threshold, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    (row,) = (row for row in planned["routes"] if row["chosen"])
    assert (planned["chosen"], row["seconds"]) == (route, about)

    with gr.Blocks():
        section = MemorySection(backend, Library(backend))
        page = SimpleNamespace(session_hash="a page")
        shown = list(section.show(page, SIDE, SIDE, 1, "fp32", "decode", NAME))[-1]  # type: ignore[arg-type]
    line = re.sub("<.*?>", "", shown[2])
    assert line.strip().startswith(f"{sentence(plan.describe())}: needs ")
    said = re.search(r"takes about (\d+) ms\.", line)
    assert said is not None
    assert int(said[1]) / 1000 == about
    (full,) = (row for row in shown[3].split("<tr>") if "<b>Full</b>" in row)
    assert ("Gave a wrong picture" in full) is (not threshold)

    run = Comparer(backend).start(Source(latents=latents), [VAEFile(NAME, host.data / NAME)], [AUTO])
    assert run.finished.wait(60)
    assert run.problem == ""
    assert (outcomes[-1].plan.route.value, outcomes[-1].plan.seconds) == (route, about)
    assert run.cells[0].done_by == plan.describe()
