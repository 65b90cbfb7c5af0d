"""The nodes give what ComfyUI's own give, in less memory, and leave to it what they cannot."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.comfyui_double import VAE, Interrupted, Manager, forget, modules
from tests.networks.small import own_network
from vae_lib.networks import AutoencoderKLConfig

ROOT = Path(__file__).parents[1]
CHECKOUT = os.environ.get("COMFYUI_DIR")


class KL(nn.Module):
    """ComfyUI's AutoencoderKL around halves with ldm's names."""

    def __init__(self) -> None:
        super().__init__()
        ours = own_network(AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1))
        self.encoder, self.decoder = ours.encoder, ours.decoder
        self.quant_conv, self.post_quant_conv = ours.quant_conv, ours.post_quant_conv

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def encode(self, x: Tensor) -> Tensor:
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape)


class Wan(nn.Module):
    """ComfyUI's WanVAE, by diffusers' network: it gives the mean of a posterior, and knows videos."""

    def __init__(self, **shape: Any) -> None:
        from diffusers import AutoencoderKLWan

        super().__init__()
        torch.manual_seed(0)
        self.own = [AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1, **shape).eval().requires_grad_(False)]
        for name, part in self.own[0].named_children():
            setattr(self, name, part)

    def decode(self, z: Tensor) -> Tensor:
        return self.own[0].decode(z).sample

    def encode(self, x: Tensor) -> Tensor:
        return self.own[0].encode(x).latent_dist.mean


WAN_22 = {"decoder_base_dim": 12, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def nodes(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``vae_lib.comfyui`` in the double."""
    for name, module in modules(manager).items():
        monkeypatch.setitem(sys.modules, name, module)
    forget()
    module = importlib.import_module("vae_lib.comfyui")
    monkeypatch.setattr(module, "_PACKAGES", ("vae_lib", "diffusers"))
    with torch.inference_mode():
        yield module
    forget()


@pytest.fixture(params=["KL", "Wan", "Wan 2.2"])
def vae(request: pytest.FixtureRequest, manager: Manager) -> VAE:
    made = {
        "KL": lambda: VAE(manager, KL(), 4),
        "Wan": lambda: VAE(manager, Wan(), 16, 3),
        "Wan 2.2": lambda: VAE(manager, Wan(**WAN_22), 16, 3),
    }
    return made[request.param]()


def given(vae: VAE) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    shape = (1, vae.latent_channels, 1, 6, 5) if vae.latent_dim == 3 else (2, vae.latent_channels, 6, 5)
    return {"samples": torch.randn(shape)}, torch.rand(1, 64, 96, 3)


def decoded(nodes: Any, vae: VAE, route: str = "Automatic", memory_limit: float = 0.0) -> tuple[Tensor, str]:
    samples, _ = given(vae)
    return nodes.DecodeNode().run(vae=vae, route=route, memory_limit=memory_limit, samples=samples)


def encoded(nodes: Any, vae: VAE, route: str = "Automatic") -> tuple[Tensor, str]:
    _, pixels = given(vae)
    torch.manual_seed(2)  # of the posterior
    latents, report = nodes.EncodeNode().run(vae=vae, route=route, memory_limit=0.0, pixels=pixels)
    return latents["samples"], report


@pytest.mark.parametrize("route", ["Automatic", "Full", "Tiled", "Tiled + RAM", "CPU"])
def test_the_same_numbers_by_every_route(route: str, nodes: Any, vae: VAE, manager: Manager) -> None:
    samples, pixels = given(vae)
    picture = vae.decode(samples["samples"])
    torch.manual_seed(2)
    latents = vae.encode(pixels)
    asked = list(manager.asked)
    for (ours, report), own, verb in (
        (decoded(nodes, vae, route), picture, "Decoded"),
        (encoded(nodes, vae, route), latents, "Encoded"),
    ):
        assert ours.shape == own.shape
        assert 0 < float((ours - own).abs().max()) < 2e-5
        assert report.startswith(f"{verb} ")
        assert report.endswith(".")
    assert asked == [10.0**12] * 2
    assert all(need < 10**8 for need in manager.asked[2:])
    assert len(manager.asked) == 4
    assert manager.shown[-1][0] == manager.shown[-1][1]
    assert not {"decode", "encode"} & vars(vae.first_stage_model).keys()
    assert vae.memory_used_decode((), None) == 10.0**12
    for half in (vae.first_stage_model.encoder, vae.first_stage_model.decoder):
        assert "forward" not in vars(half)


def test_the_report_says_what_was_done(nodes: Any, vae: VAE) -> None:
    picture, report = decoded(nodes, vae, "Tiled")
    height, width = picture.shape[-3:-1]
    assert report.startswith(f"Decoded {width}x{height} in tiles, ")
    _, report = decoded(nodes, vae, memory_limit=1e-9)
    assert "of memory is too little for every route; the smallest takes" in report
    assert " was free" not in report


@pytest.mark.parametrize("shape", [{}, WAN_22], ids=["Wan", "Wan 2.2"])
def test_videos_are_ours(nodes: Any, manager: Manager, shape: dict[str, Any]) -> None:
    vae = VAE(manager, Wan(**shape), 16, 3)
    z = torch.randn(2, 16, 3, 3, 3)
    own = vae.decode(z)
    manager.asked.clear()
    ours, report = nodes.DecodeNode().run(vae=vae, route="Tiled", memory_limit=0.0, samples={"samples": z})
    assert 0 < float((ours - own).abs().max()) < 1e-5
    assert report.startswith("Decoded ")
    assert "in tiles" in report
    assert all(1 < asked < 10**9 for asked in manager.asked)


def test_a_vae_without_a_network_is_comfyuis(nodes: Any, manager: Manager) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def decode(self, z: Tensor) -> Tensor:
            return self.decoder(z)

    vae = VAE(manager, Other(), 4)
    ours, report = decoded(nodes, vae)
    assert ours.shape == (2, 6, 5, 3)
    assert report == "VAE Guard has no network for this VAE: ComfyUI's own is used."


def test_a_changed_layer_is_comfyuis_and_has_its_room(nodes: Any, manager: Manager) -> None:
    vae = VAE(manager, KL(), 4)
    layer = vae.first_stage_model.decoder.conv_out  # type: ignore[union-attr]
    layer.weight_function = [lambda weight: weight]
    _, report = decoded(nodes, vae)
    assert "ComfyUI's own decode is used" in report
    assert "decoder.conv_out" in report
    assert manager.asked[-1] == 10.0**12


def test_out_of_memory_takes_the_next_route(nodes: Any, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lib.engine import batch

    real, calls = batch.decode, []

    def decode(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    samples, _ = given(vae)
    own = vae.decode(samples["samples"])
    decoded(nodes, vae, "Full")  # the planner counts by the same function, and remembers
    monkeypatch.setattr(batch, "decode", decode)
    ours, report = decoded(nodes, vae, "Full")
    assert float((ours - own).abs().max()) < 2e-5
    assert "because the full decode ran out of memory" in report


def test_stopped_by_the_user(nodes: Any, vae: VAE, manager: Manager) -> None:
    manager.stopped = True
    with pytest.raises(Interrupted):
        decoded(nodes, vae, "Tiled + RAM", memory_limit=1e-9)


def test_inputs_are_as_comfyui_wants_them(nodes: Any) -> None:
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        required = node.INPUT_TYPES()["required"]
        assert list(required) == [node.GIVEN[0], "vae", "route", "memory_limit"]
        assert required["route"][0] == ["Automatic", "Full", "Tiled", "Tiled + RAM", "CPU"]
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 2
        assert name in nodes.NODE_DISPLAY_NAME_MAPPINGS


def loaded() -> Any:
    """The ``__init__.py`` at the root, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location("vae_guard_nodes", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_elsewhere_the_root_has_no_nodes() -> None:
    assert loaded().NODE_CLASS_MAPPINGS == {}


def test_in_comfyui_the_root_has_the_nodes(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = loaded()
    assert set(found.NODE_CLASS_MAPPINGS) == set(found.NODE_DISPLAY_NAME_MAPPINGS) == set(nodes.NODE_CLASS_MAPPINGS)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="COMFYUI_DIR names no checkout of ComfyUI")
def test_the_real_one() -> None:
    """In COMFYUI_PYTHON, whose packages are ComfyUI's: networks of full width, ComfyUI's own VAE object and nodes."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    run = subprocess.run(
        [python, str(ROOT / "tests" / "run_comfyui.py"), str(CHECKOUT)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
