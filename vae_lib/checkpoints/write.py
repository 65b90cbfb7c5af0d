"""Writing tensors, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch

from vae_lib.files import PathLike, write_atomically


def save_safetensors(
    tensors: Mapping[str, torch.Tensor], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, from any device and of any strides, and text ``metadata`` as one safetensors file.

    Raises:
        InputError: as ``write_atomically``.
    """
    ready: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        # the format has no views: tensors that share memory are written one by one
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        ready[name] = own
    write_atomically(path, lambda aside: safetensors.torch.save_file(ready, str(aside), dict(metadata or {}) or None))
