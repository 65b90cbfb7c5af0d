"""Weights that a host left partly in main memory are brought to where the decode computes, layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.engine.two_devices import THERE, There, TwoDevices, move_half
from tests.networks.small import BF16, CPU, FP32, SMALL, distance, images, latents_for, network
from vae_lib.engine import Compute, Operation, Tiling, decode, encode_moments
from vae_lib.networks import AutoencoderKL
from vae_lib.planning import Profile, Work, trust
from vae_lib.planning.plan import WHOLE

TILINGS = (
    Tiling(WHOLE),
    Tiling(1 << 14),
    Tiling(1 << 14, recompute=2),
    Tiling(1 << 14, offload=True, attention_bytes=1 << 14),
)


@pytest.fixture
def in_part() -> AutoencoderKL:
    vae = copy.deepcopy(network(SMALL))
    move_half(vae)
    assert {weight.device for weight in vae.parameters()} == {CPU, THERE}
    return vae


def back(result: Tensor) -> Tensor:
    assert isinstance(result, There)
    return result.numbers


def test_the_second_device_is_a_strict_one(in_part: AutoencoderKL) -> None:
    """Else the tests below would pass whatever the engine does."""
    with TwoDevices(), pytest.raises(RuntimeError, match="found two"):
        in_part.decode(latents_for(SMALL, 4, 5).to(THERE))


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_decode_and_encode(in_part: AutoencoderKL, tiling: Tiling) -> None:
    compute, whole = Compute(THERE, FP32), network(SMALL)
    latents, pictures = latents_for(SMALL, 6, 5, batch=2), images(12, 10)
    with TwoDevices():
        decoded = back(decode(in_part, latents.to(THERE), tiling, compute))
        mean, log_variance = map(back, encode_moments(in_part, pictures.to(THERE), tiling, compute))
    assert distance(decoded, whole.decode(latents)) < 1e-5
    for got, wanted in zip((mean, log_variance), whole.encode_moments(pictures), strict=True):
        assert distance(got, wanted) < 1e-5


def test_in_another_dtype_than_some_of_them_have(in_part: AutoencoderKL) -> None:
    latents, whole = latents_for(SMALL, 6, 5), network(SMALL)
    assert in_part.decoder is not None
    with TwoDevices():
        in_part.decoder.mid.to(BF16)
        decoded = back(decode(in_part, latents.to(THERE), TILINGS[0], Compute(THERE, FP32)))
    assert 0 < distance(decoded, whole.decode(latents)) < 0.02


def test_a_route_is_not_judged_by_them(in_part: AutoencoderKL) -> None:
    """The plain network, which the small check compares with, does not run then."""
    assert not in_part.lies_on(THERE, FP32)
    assert not in_part.lies_on(CPU, FP32)
    compute = Compute(torch.device("cpu"), FP32)
    profile = Profile.usual(Work(SMALL, Operation.DECODE, 1, 1, 1, compute.device, FP32))
    assert trust.small_check(in_part, Operation.DECODE, compute, profile) is None
