"""Real VAEs of diffusers, small and with random weights: guarded they give what they give without."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae_lib.decode import Ladder
from vae_lib.decode.ladder import engine
from vae_lib.diffusers import guard, unguard
from vae_lib.planning import Route
from vae_lib.units import size_text

library: Any = pytest.importorskip("diffusers", reason="diffusers is not installed")


def kl(**more: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 32, 32),
        "sample_size": 32,
    }
    return library.AutoencoderKL(**{**config, **more}).eval()


def wan(name: str, **shape: Any) -> Any:
    torch.manual_seed(0)
    vae = getattr(library, name)(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, **shape).eval()
    for parameter in vae.parameters():
        parameter.data.add_(0.01)  # else its biases are nothing
    return vae


VAES: dict[str, Callable[[], Any]] = {
    "SD": kl,
    "FLUX": lambda: kl(use_quant_conv=False, use_post_quant_conv=False, latent_channels=16),
    "Qwen-Image": lambda: wan("AutoencoderKLQwenImage"),
    "Wan": lambda: wan("AutoencoderKLWan"),
    "Wan 2.2": lambda: wan(
        "AutoencoderKLWan", decoder_base_dim=12, is_residual=True, in_channels=12, out_channels=12, patch_size=2
    ),
}


@pytest.fixture(params=VAES)
def vae(request: pytest.FixtureRequest) -> Any:
    return VAES[request.param]()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def given(vae: Any) -> tuple[Tensor, Tensor]:
    """Latents of two pictures of no round size, and two such pictures."""
    torch.manual_seed(1)
    is_video = hasattr(vae.config, "z_dim")
    z = torch.randn(2, vae.config.z_dim if is_video else vae.config.latent_channels, 7, 9)
    side = 8 * (vae.config.get("patch_size") or 1) if is_video else 4
    x = torch.rand(2, 3, side * 7, side * 9) * 2 - 1
    return (z[:, :, None], x[:, :, None]) if is_video else (z, x)


def both(vae: Any) -> tuple[Tensor, Tensor]:
    z, x = given(vae)
    z, x = (tensor.to(vae.dtype) for tensor in (z, x))
    return vae.decode(z).sample, vae.encode(x).latent_dist.parameters


def distance(one: Tensor, other: Tensor) -> float:
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    return float((one.double() - other.double()).abs().max())


@pytest.mark.parametrize("route", ["full", "tiled", "offload", "cpu"])
def test_the_same_numbers_by_every_route(vae: Any, route: str) -> None:
    own = both(vae)
    guarded = guard(vae, routes=[route])
    for one, other in zip(both(vae), own, strict=True):
        assert 0 < distance(one, other) < 2e-5
        assert guarded.outcome is not None
    assert guarded.outcome.plan.route.value == route
    unguard(vae)
    assert [name for name in vars(vae) if "guard" in name or name in ("_decode", "_encode")] == []
    assert all(distance(one, other) == 0 for one, other in zip(both(vae), own, strict=True))


def change(what: str) -> Callable[[Any], None]:
    def circular(vae: Any) -> None:
        for layer in vae.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "circular"

    return {
        "slicing": lambda vae: vae.enable_slicing(),
        "channels last": lambda vae: vae.to(memory_format=torch.channels_last),
        "fused attention": lambda vae: vae.fuse_qkv_projections(),
        "seamless": circular,
        "frozen": lambda vae: vae.requires_grad_(False),
    }[what]


@pytest.mark.parametrize("what", ["slicing", "channels last", "fused attention", "seamless", "frozen"])
def test_what_users_do_to_a_vae(what: str) -> None:
    vae = kl()
    guarded = guard(vae)
    change(what)(vae)
    ours = both(vae)
    assert guarded.outcome is not None
    unguard(vae)
    assert all(distance(one, other) < 2e-5 for one, other in zip(ours, both(vae), strict=True))


def test_tiles_are_not_needed(vae: Any) -> None:
    vae.enable_tiling()
    vae.tile_sample_min_height = vae.tile_sample_min_width = 16
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 4
    guard(vae)
    ours = both(vae)
    unguard(vae)
    vae.disable_tiling()
    assert all(distance(one, other) < 2e-5 for one, other in zip(ours, both(vae), strict=True))


def test_a_tuple_instead_of_an_output(vae: Any) -> None:
    z, x = given(vae)
    guard(vae)
    (picture,) = vae.decode(z, return_dict=False)
    assert distance(picture, vae.decode(z).sample) == 0
    (posterior,) = vae.encode(x, return_dict=False)
    assert distance(posterior.mode(), vae.encode(x).latent_dist.mode()) == 0


def test_dtypes() -> None:
    vae = kl()
    guarded = guard(vae)
    z, _ = given(vae)
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(z).sample.dtype == torch.bfloat16
    assert guarded.outcome is not None
    assert guarded.outcome.plan.dtype == torch.float32  # computed in the VAE's own
    vae.to(torch.bfloat16)
    assert vae.decode(z.bfloat16()).sample.dtype == torch.bfloat16
    assert guarded.outcome.plan.dtype == torch.bfloat16


def test_a_copy_decodes_with_its_own_weights(vae: Any) -> None:
    guard(vae)
    other = copy.deepcopy(vae)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    ours = both(other)
    assert all(distance(one, theirs) > 1e-3 for one, theirs in zip(ours, both(vae), strict=True))
    unguard(other)
    assert all(distance(one, theirs) < 2e-5 for one, theirs in zip(ours, both(other), strict=True))


def test_a_pipeline() -> None:
    pipe = SimpleNamespace(vae=kl())
    guarded = guard(pipe)
    both(pipe.vae)
    assert guarded.outcome is not None
    unguard(pipe)
    assert "_decode" not in vars(pipe.vae)


def test_memory_that_is_allowed() -> None:
    vae, z = kl(), torch.randn(1, 4, 40, 40)
    first = guard(vae)
    whole = vae.decode(z).sample
    assert first.outcome is not None
    whole_plan = first.outcome
    said: list[str] = []
    allowed = whole_plan.plan.peak_bytes // 2
    guarded = guard(vae, memory=allowed, on_event=said.append)
    assert distance(vae.decode(z).sample, whole) < 2e-5
    assert guarded.outcome is not None
    assert guarded.outcome.plan.peak_bytes <= allowed
    assert said[0].startswith("decoded 160x160 in tiles")
    assert f"only {size_text(allowed)} may be used" in said[0]


def test_out_of_memory_goes_on_to_the_next_route(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = both(vae)
    said: list[str] = []
    guarded = guard(vae, on_event=said.append)
    vae.decode(given(vae)[0])  # its plans are kept: they are made by the same function
    decode, times = engine.decode, [0]

    def first_fails(*args: Any, **kwargs: Any) -> Any:
        times[0] += 1
        if times[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(*args, **kwargs)

    monkeypatch.setattr(engine, "decode", first_fails)
    assert distance(vae.decode(given(vae)[0]).sample, own) < 2e-5
    assert guarded.outcome is not None
    assert len(guarded.outcome.attempts) == 1
    assert "out of memory" in said[0]


def compiled(vae: Any) -> None:
    vae.decoder._compiled_call_impl = vae.decoder.forward  # as vae.decoder.compile() leaves it


def hooked(at: str) -> Callable[[Any], None]:
    return lambda vae: vae.get_submodule(at).register_forward_hook(lambda module, args, output: output + 1)


def another_forward(at: str) -> Callable[[Any], None]:
    def alter(vae: Any) -> None:
        module = vae.get_submodule(at)
        own = module.forward
        module.forward = lambda *args, **kwargs: own(*args, **kwargs) + 1

    return alter


def own_attention(vae: Any) -> None:
    class Processor:
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden_states * 0

    vae.set_attn_processor(Processor())


def coarser_norm(vae: Any) -> None:
    vae.decoder.conv_norm_out.eps = 0.1


def another_half(vae: Any) -> None:
    own = vae.decoder

    class Wrapped(nn.Module):
        def forward(self, z: Tensor, *rest: Any) -> Tensor:
            return own(z, *rest) + 1

    vae.decoder = Wrapped()


def quantised(vae: Any) -> None:
    class Packed(Tensor):
        pass

    weight = vae.decoder.conv_out.weight
    vae.decoder.conv_out.weight = nn.Parameter(weight.data.as_subclass(Packed), requires_grad=False)


def on_disk(vae: Any) -> None:
    registry = SimpleNamespace(
        hooks={"group_offloading": None},
        get_hook=lambda name: SimpleNamespace(group=SimpleNamespace(offload_to_disk_path="/tmp/x")),
    )
    vae.decoder.conv_out._diffusers_hook = registry


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (compiled, "the VAE's decoder is compiled"),
        (hooked("decoder.conv_out"), "has a hook of tests.test_diffusers"),
        (hooked("decoder"), "layer decoder has a hook of tests.test_diffusers"),
        (hooked("post_quant_conv"), "layer post_quant_conv has a hook of tests.test_diffusers"),
        (another_forward("decoder.conv_out"), "was given another forward by tests.test_diffusers"),
        (another_forward("decoder"), "layer decoder was given another forward by tests.test_diffusers"),
        (another_half, "layer decoder was replaced by a Wrapped of tests.test_diffusers"),
        (own_attention, "has an attention processor of tests.test_diffusers"),
        (coarser_norm, "has eps = 0.1"),
        (quantised, "decoder.conv_out.weight is quantised"),
        (on_disk, "is kept on disk by group offloading"),
    ],
)
def test_what_is_left_to_diffusers(alter: Callable[[Any], None], reason: str) -> None:
    vae = kl()
    alter(vae)
    own = vae.decode(given(vae)[0]).sample
    said: list[str] = []
    guarded = guard(vae, on_event=said.append)
    for _ in range(2):
        assert distance(vae.decode(given(vae)[0]).sample, own) == 0
        assert guarded.outcome is None
    assert len(said) == 1  # once
    assert said[0].startswith("diffusers' own decode is used: ")
    assert reason in said[0]


@pytest.mark.parametrize("config", [{"norm_num_groups": 16}, {"act_fn": "mish"}, {"mid_block_add_attention": False}])
def test_another_network_is_left_to_diffusers(config: dict[str, Any]) -> None:
    vae = kl(**config)
    own = both(vae)
    guarded = guard(vae)
    assert all(distance(one, other) == 0 for one, other in zip(both(vae), own, strict=True))
    assert guarded.outcome is None


def test_gradients(vae: Any) -> None:
    said: list[str] = []
    guarded = guard(vae, on_event=said.append)
    z, _ = given(vae)
    with torch.enable_grad():
        vae.decode(z.requires_grad_()).sample.sum().backward()
        assert z.grad is not None
        assert "gradients are wanted" in said[0]
        vae.requires_grad_(False)
        vae.decode(z.detach())
    assert guarded.outcome is not None


def test_numbers_that_are_none_are_diffusers(vae: Any) -> None:
    guarded = guard(vae)
    z, _ = given(vae)
    assert vae.decode(torch.full_like(z, torch.nan)).sample.isnan().any()
    assert guarded.outcome is None


@pytest.mark.parametrize("route", ["full", "tiled", "offload"])
@pytest.mark.parametrize("kind", ["Qwen-Image", "Wan", "Wan 2.2"])
def test_videos(kind: str, route: str) -> None:
    vae = VAES[kind]()
    z = torch.randn(2, 16, 3, 4, 3)
    x = torch.rand(1, 3, 9, 64, 32) * 2 - 1
    own = vae.decode(z).sample, vae.encode(x).latent_dist.parameters
    guarded = guard(vae, routes=[route])
    ours = vae.decode(z).sample, vae.encode(x).latent_dist.parameters
    assert guarded.outcome is not None
    assert all(0 < distance(one, other) < 2e-5 for one, other in zip(ours, own, strict=True))


def test_a_video_by_a_smaller_route_is_said_to_be_one() -> None:
    vae, said = wan("AutoencoderKLWan"), list[str]()
    guard(vae, on_event=said.append, memory=1_000_000)
    vae.decode(torch.randn(1, 16, 3, 4, 4))
    assert said[-1].startswith("decoded a video of 32x32 ")
    assert "The video is the same." in said[-1]


def test_a_bug_of_ours_loses_no_picture(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = both(vae)
    said: list[str] = []
    guard(vae, on_event=said.append)

    def bug(*args: Any) -> Any:
        raise ZeroDivisionError("made by the test")

    monkeypatch.setattr(Ladder, "decode", bug)
    assert distance(vae.decode(given(vae)[0]).sample, own) == 0
    assert said == ["diffusers' own decode is used, because VAE Guard failed: made by the test"]


def test_too_little_memory_takes_the_smallest_plan(vae: Any) -> None:
    own, _ = both(vae)
    said: list[str] = []
    guarded = guard(vae, memory=1, on_event=said.append)
    assert distance(vae.decode(given(vae)[0]).sample, own) < 2e-5
    assert guarded.outcome is not None
    assert guarded.outcome.plan.route is not Route.FULL
    assert said[0].startswith("1 byte of memory is too little for every route; the smallest takes ")
    assert guarded.memory == 1


@pytest.mark.parametrize("memory", [0, -1, 1.5, True, "4GB"])
def test_memory_is_a_number_of_bytes(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory is a number of bytes"):
        guard(kl(), memory=memory)


def test_a_listener_that_fails_loses_no_picture(vae: Any) -> None:
    own, _ = both(vae)

    def fail(text: str) -> None:
        raise ZeroDivisionError

    guard(vae, memory=1, on_event=fail)
    assert distance(vae.decode(given(vae)[0]).sample, own) < 2e-5


def test_what_users_put_in_its_place_is_theirs(vae: Any) -> None:
    def theirs(self: Any, z: Tensor, return_dict: bool = True) -> str:
        return "theirs"

    vae._decode = MethodType(theirs, vae)
    with pytest.raises(TypeError, match=r"_decode was replaced by tests.test_diffusers; undo that before guard"):
        guard(vae)
    unguard(vae)
    assert vae._decode(given(vae)[0]) == "theirs"
    del vae._decode
    guard(vae)
    kept, vae._decode = vae._decode, MethodType(theirs, vae)
    unguard(vae)
    assert vae._decode(given(vae)[0]) == "theirs"
    kept(given(vae)[0])  # diffusers' own


def test_a_file_has_nothing_of_it(vae: Any) -> None:
    guard(vae, on_event=lambda text: None)
    vae.decode(given(vae)[0])
    loaded = pickle.loads(pickle.dumps(vae))
    assert loaded._vae_guard is None
    assert distance(loaded.decode(given(vae)[0]).sample, vae.decode(given(vae)[0]).sample) < 2e-5
    unguard(loaded)
    assert guard(loaded).outcome is None


def test_the_picture_is_not_kept(vae: Any) -> None:
    guarded = guard(vae)
    picture = vae.decode(given(vae)[0]).sample
    assert guarded.outcome is not None
    assert guarded.outcome.result.numel() == 0
    assert picture.numel()


def test_what_cannot_be_guarded() -> None:
    tiny = library.AutoencoderTiny()
    for target, name in (
        (tiny, "AutoencoderTiny"),
        (SimpleNamespace(unet=None), "NoneType"),
        (nn.Linear(1, 1), "Linear"),
    ):
        with pytest.raises(TypeError, match=f"no network for a {name}; it knows AutoencoderKL"):
            guard(target)
    for routes in ([], ["taesd"], ["fast"], "fast"):
        with pytest.raises(ValueError, match="routes are some of full, tiled, offload, cpu"):
            guard(kl(), routes=routes)


def test_weights_that_diffusers_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: Any = pytest.importorskip("diffusers.hooks")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cpu"))
    for kind in ("leaf_level", "block_level"):
        vae = kl().requires_grad_(False)
        own = both(vae)
        more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        hooks.apply_group_offloading(
            vae,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            **more,
        )
        guarded = guard(vae)
        assert all(distance(one, other) < 2e-5 for one, other in zip(both(vae), own, strict=True))
        assert guarded.outcome is not None


def test_weights_that_are_stored_in_8_bits() -> None:
    vae = kl().requires_grad_(False)
    vae.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    z, _ = given(vae)
    own = vae.decode(z).sample
    guarded = guard(vae)
    assert distance(vae.decode(z).sample, own) < 1e-4
    assert guarded.outcome is not None


def test_weights_that_accelerate_brings() -> None:
    accelerate: Any = pytest.importorskip("accelerate", reason="accelerate is not installed")
    for offload in (accelerate.cpu_offload, accelerate.cpu_offload_with_hook):
        vae = kl().requires_grad_(False)
        own = both(vae)
        offload(vae, torch.device("cpu"))
        guarded = guard(vae)
        assert all(distance(one, other) < 2e-5 for one, other in zip(both(vae), own, strict=True))
        assert guarded.outcome is not None


def test_the_example_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "diffusers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    outcomes = []

    class Pipeline:
        def __init__(self) -> None:
            self.vae = kl()

        @classmethod
        def from_pretrained(cls, name: str, torch_dtype: torch.dtype) -> Pipeline:
            return cls()

        def enable_model_cpu_offload(self) -> None:
            pass

        def __call__(self, prompt: str, width: int, height: int) -> Any:
            made = self.vae.decode(torch.randn(1, 4, 8, 8)).sample
            outcomes.append(self.vae._vae_guard.outcome)
            return SimpleNamespace(images=[made])

    monkeypatch.setattr(library, "StableDiffusionXLPipeline", Pipeline)
    names: dict[str, Any] = {}
    exec(example, names)
    assert outcomes[0] is not None
    assert "_decode" not in vars(names["pipe"].vae)
