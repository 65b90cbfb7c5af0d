"""Layers that other extensions changed: told apart, decoded as the host does, or left to the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tests.guard.fake_host import FakeHost, decoded, network
from tests.networks.small import SMALL, distance, latents_for
from vae_lib.engine import Edge, Padding
from vae_lib.guard import Guard, Request
from vae_lib.guard.kept import HOSTS_OWN
from vae_lib.guard.layers import Altered, padding_of

PACKAGES = ("vae_lib",)


def convolutions(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def tile_by_axis(module: nn.Module, x: bool, y: bool) -> None:
    """As asymmetric-tiling-sd-webui does, and those who copied it."""

    def conv_forward(self: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = F.pad(given, self.paddingX, mode=self.padding_modeX)
        padded = F.pad(padded, self.paddingY, mode=self.padding_modeY)
        return F.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation, self.groups)

    for layer in convolutions(module):
        layer.padding_modeX = "circular" if x else "constant"
        layer.padding_modeY = "circular" if y else "constant"
        widths = layer._reversed_padding_repeated_twice
        layer.paddingX, layer.paddingY = (widths[0], widths[1], 0, 0), (0, 0, widths[2], widths[3])
        layer._conv_forward = conv_forward.__get__(layer, nn.Conv2d)


def untile(module: nn.Module) -> None:
    for layer in convolutions(module):
        layer._conv_forward = nn.Conv2d._conv_forward.__get__(layer, nn.Conv2d)


def reflect(module: nn.Module) -> None:
    """As reForge's reflective padding does, layer by layer."""
    for layer in convolutions(module):
        layer.padding_mode = "reflect"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.wrap(Guard(host))
    return host


@pytest.mark.parametrize(
    ("change", "padding"),
    [
        (lambda module: tile_by_axis(module, True, False), Padding(Edge.ZEROS, Edge.CIRCULAR)),
        (lambda module: tile_by_axis(module, False, True), Padding(Edge.CIRCULAR, Edge.ZEROS)),
        (lambda module: (tile_by_axis(module, True, False), untile(module)), Padding()),
        (reflect, Padding(Edge.REFLECT, Edge.REFLECT)),
    ],
    ids=["across", "down", "undone", "reflecting"],
)
@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM"])
def test_padding_by_axis_is_decoded_exactly(
    host: FakeHost, change: Callable[[nn.Module], object], padding: Padding, decode_by: str
) -> None:
    assert host.loaded is not None
    module, latents = host.loaded.module, latents_for(SMALL, 7, 9)
    plain = decoded(module, latents)
    change(module)
    wanted = decoded(module, latents)
    picture = host.generate(latents, Request(False, decode_by))
    assert padding_of(module.decoder, "decoder", PACKAGES) == padding
    assert distance(picture, wanted) < 1e-5
    assert host.noted["VAE Guard"].lower().startswith(decode_by.lower())
    if padding != Padding():
        assert distance(plain, wanted) > 0.01  # or this would prove nothing


class Wider(nn.Conv2d):
    """What adapters put in place of a layer."""

    def forward(self, given: Tensor) -> Tensor:
        return 2 * super().forward(given)


Wider.__module__ = "someones.extension"


def with_subclass(module: Any) -> None:
    old, new = module.decoder.conv_out, Wider(32, 3, 3, padding=1)
    new.load_state_dict(old.state_dict())
    module.decoder.conv_out = new.requires_grad_(False)


def with_forward(module: Any) -> None:
    own = module.decoder.conv_out.forward
    module.decoder.conv_out.forward = lambda given: own(given) + 1


def with_conv_forward(module: Any) -> None:
    own = module.decoder.conv_out._conv_forward
    module.decoder.conv_out._conv_forward = lambda *given: own(*given) + 1


def with_hook(module: Any) -> None:
    module.decoder.conv_out.register_forward_hook(lambda layer, given, result: result + 1)


def with_pre_hook(module: Any) -> None:
    module.decoder.conv_out.register_forward_pre_hook(lambda layer, given: (given[0] + 1,))


def with_parametrization(module: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(module.decoder.conv_out, "weight", Doubled())


def with_other_padding(module: Any) -> None:
    module.decoder.conv_out.padding_mode = "replicate"


def with_one_layer_padded_otherwise(module: Any) -> None:
    module.decoder.conv_out.padding_mode = "circular"


def with_a_lora_of_comfyuis_kin(module: Any) -> None:
    layer = module.decoder.conv_out
    layer.weight_function = [lambda weight: 2 * weight]
    own = type(layer).forward
    layer.__class__ = type("Conv2d", (type(layer),), {"forward": lambda self, x: 2 * own(self, x)})
    layer.__class__.__module__ = "vae_lib.ops"


def with_a_lora_of_forges(module: Any) -> None:
    with_a_lora_of_comfyuis_kin(module)
    module.decoder.conv_out.weight_function = []
    module.decoder.conv_out.forge_online_loras = {"weight": ["a patch"]}


def with_the_halfs_forward(module: Any) -> None:
    own = module.decoder.forward
    module.decoder.forward = lambda given: own(given) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_subclass, "conv_out was replaced by a Wider of someones.extension"),
        (with_forward, "conv_out was given another forward by "),
        (with_conv_forward, "conv_out was given another _conv_forward by "),
        (with_hook, "conv_out has a hook of "),
        (with_pre_hook, "conv_out has a hook of "),
        (with_parametrization, "conv_out is parametrized"),
        (
            with_a_lora_of_comfyuis_kin,
            "conv_out has weights that are changed as it computes (weight_function)",
        ),
        (with_a_lora_of_forges, "conv_out has weights that are changed as it computes (forge_online_loras)"),
        (with_other_padding, "conv_out pads by 'replicate'"),
        (with_one_layer_padded_otherwise, "conv_out pads differently than decoder."),
        (with_the_halfs_forward, "decoder was given another forward by "),
    ],
)
def test_what_is_not_known_is_decoded_by_the_host(host: FakeHost, change: Callable[[Any], None], said: str) -> None:
    assert host.loaded is not None
    module, latents = host.loaded.module, latents_for(SMALL, 4, 4)
    plain = decoded(module, latents)
    change(module)
    wanted = decoded(module, latents)
    assert distance(plain, wanted) > 0.01
    for _ in range(2):
        assert torch.equal(host.generate(latents, Request(decode_by="Tiled")), wanted)
    assert host.noted == {"VAE Guard": HOSTS_OWN}
    (told,) = host.told
    assert f"The VAE's layer decoder.{said}" in told or f"The VAE's layer {said}" in told
    assert told.endswith("so VAE Guard does not know what it computes. The WebUI's own code was used instead.")


class VAEHook:
    """Tiled VAE's name for what it puts in place of the decoder's forward."""

    def __call__(self, given: Tensor) -> Tensor:
        raise AssertionError("the picture is not cut into tiles")


def test_anothers_tiles_are_made_needless_and_that_is_told(host: FakeHost) -> None:
    assert host.loaded is not None
    module, latents = host.loaded.module, latents_for(SMALL, 4, 4)
    wanted = decoded(module, latents)
    module.decoder.forward = VAEHook()
    for _ in range(2):
        assert distance(host.generate(latents), wanted) < 1e-5
    (told,) = host.told
    assert "is switched on and would cut the picture into tiles that overlap" in told
    assert host.noted["VAE Guard"] == "full"
    assert isinstance(module.decoder.forward, VAEHook)  # it is theirs again


def test_a_weight_of_another_kind() -> None:
    module = network()

    class Packed(nn.Parameter):
        """As quantised weights are."""

    weight = module.decoder.conv_out.weight
    module.decoder.conv_out.weight = weight.as_subclass(Packed)
    with pytest.raises(Altered, match="has a weight of the kind Packed"):
        padding_of(module.decoder, "decoder", PACKAGES)


def test_it_takes_no_time() -> None:
    module = network()
    started = time.perf_counter()
    for _ in range(20):
        padding_of(module.decoder, "decoder", PACKAGES)
    assert (time.perf_counter() - started) / 20 < 0.05  # a millisecond, on a machine that does nothing else


def test_each_changed_layer_is_told(host: FakeHost) -> None:
    assert host.loaded is not None
    latents = latents_for(SMALL, 4, 4)
    hook = host.loaded.module.decoder.conv_in.register_forward_hook(lambda layer, given, result: result + 1)
    host.generate(latents)
    hook.remove()
    host.generate(latents)
    with_subclass(host.loaded.module)
    for _ in range(2):
        host.generate(latents)
    assert ["conv_in has a hook" in host.told[0], "conv_out was replaced" in host.told[1]] == [True, True]
    assert len(host.told) == 2


class Deaf(nn.Conv2d):
    """As Forge's, which call the ``_conv_forward`` of their class whatever the instance was given."""

    def forward(self, given: Tensor) -> Tensor:
        return super()._conv_forward(given, self.weight, self.bias)


Deaf.__module__ = "vae_lib.layers"


def test_a_replacement_that_the_layer_does_not_call(host: FakeHost) -> None:
    assert host.loaded is not None
    module, latents = host.loaded.module, latents_for(SMALL, 5, 6)
    tile_by_axis(module, True, False)
    tiled = decoded(module, latents)
    for layer in convolutions(module):
        layer.__class__ = Deaf
    wanted = decoded(module, latents)
    assert distance(tiled, wanted) > 0.01
    assert distance(host.generate(latents, Request(False, "Tiled")), wanted) < 1e-5
    assert padding_of(module.decoder, "decoder", PACKAGES) == Padding()
    assert all("conv_forward" in vars(layer)["_conv_forward"].__name__ for layer in convolutions(module))


def test_convolutions_in_time() -> None:
    """Those of videos pad a picture like the others, or are not what we know."""
    half: Any = nn.Sequential(nn.Conv3d(2, 2, 3, padding=(0, 1, 1)), nn.Conv2d(2, 2, 3, padding=1))
    assert padding_of(half, "decoder", PACKAGES) == Padding()
    half[0].padding_mode = "circular"
    with pytest.raises(Altered, match=r"decoder\.1 pads differently than decoder\.0"):
        padding_of(half, "decoder", PACKAGES)
    half[0]._conv_forward = half[0]._conv_forward
    with pytest.raises(Altered, match=r"decoder\.0 was given another _conv_forward"):
        padding_of(half, "decoder", PACKAGES)
