"""The network as PyTorch runs it, picture by picture: what our own passes are held against, and now and then faster."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lib.engine.compute import Compute, Operation
from vae_lib.errors import Cancelled
from vae_lib.networks import Network


@torch.no_grad()
def run(vae: Network, operation: Operation, batch: Tensor, compute: Compute) -> tuple[Tensor, Tensor | None]:
    """Pictures and None, or mean and log-variance; the network's weights must lie where and as ``compute`` says.

    Raises:
        Cancelled: between pictures, when ``compute.cancelled`` says so.
    """
    results: list[Tensor] = []
    for index in range(len(batch)):
        given = batch[index : index + 1].to(compute.device, compute.dtype)
        made = vae.decode(given) if operation is Operation.DECODE else torch.cat(vae.encode_moments(given), dim=1)
        results.append(made.to(compute.destination))
        del given, made
        if compute.progress is not None:
            compute.progress(index + 1, len(batch))
        if compute.cancelled is not None and index + 1 < len(batch) and compute.cancelled():
            raise Cancelled("Stopped: the picture was not finished.")
    result = results[0] if len(results) == 1 else torch.cat(results)
    if operation is Operation.DECODE:
        return result, None
    mean, log_variance = result.chunk(2, dim=1)
    return mean, log_variance
