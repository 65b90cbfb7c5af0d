"""The command that tries this device: the same picture by every route, how fast, and in how much memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch

from vae_lib.checkpoints import load_vae
from vae_lib.decode.check import Limits, check
from vae_lib.device import DTYPES, choose_device, free_bytes, usual_dtype
from vae_lib.engine import Compute, Operation
from vae_lib.errors import CheckpointError
from vae_lib.networks import Network, sample_network


def run_check(options: argparse.Namespace) -> int:
    """0; 1 if a route gives another picture than the plain network, or nothing could be checked."""
    device = choose_device(options.device)
    dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(device)
    operation = Operation.ENCODE if options.encode else Operation.DECODE
    vae = _vae(options, operation).to(device, dtype)
    limits = Limits(options.seconds, budget=lambda where: options.free or free_bytes(where))

    shows = not options.json and sys.stderr.isatty()

    def said(text: str) -> None:
        if shows:
            print(f"\r\x1b[K{text} ...", end="", file=sys.stderr, flush=True)

    try:
        report = check(vae, operation, Compute(device, dtype), limits, said)
    finally:
        if shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(dataclasses.asdict(report) | {"verdict": report.verdict}))
    else:
        print(report.text())
    return int(report.is_wrong or not report.findings)


def _vae(options: argparse.Namespace, operation: Operation) -> Network:
    if options.vae is None:
        return sample_network(operation.half, options.like)
    model = load_vae(options.vae, dtype=torch.float32).exact
    if model is None:
        raise CheckpointError(
            f"{options.vae.name} is a TAESD, the tiny autoencoder, which has no routes to compare; choose a full VAE."
        )
    if getattr(model, operation.half) is None:
        raise CheckpointError(
            f"{options.vae.name} holds only {operation.other_half}, so it cannot {operation.value}; choose a full VAE."
        )
    return model.requires_grad_(False)
