"""Giving a network its weights without copying them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def assign(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """As ``load_state_dict(weights, assign=True)``, for networks that have nothing but parameters.

    That method itself is not to be had everywhere: AUTOMATIC1111's WebUI replaces it in all of PyTorch while it loads a
    checkpoint, and a checkpoint may want a VAE of its own.

    Raises:
        RuntimeError: when names or shapes differ.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise RuntimeError(f"{name} is of shape {found.get(name)}, and {wanted.get(name)} is wanted.")
    for name, tensor in weights.items():
        owner, _, leaf = name.rpartition(".")
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, tensor.requires_grad)
        setattr(network.get_submodule(owner), leaf, parameter)
