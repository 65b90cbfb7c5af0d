"""The commands that compute: decode and encode. All that can be known to fail is found before the work."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vae_lib.catalog import LatentSpace, family_of_space
from vae_lib.checkpoints import LoadedVAE, check_channels, load_latents, load_vae, save_safetensors, space_in
from vae_lib.cli.pictures import check_picture, picture_names, read_picture, write_picture
from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import DTYPES, PeakMemory, choose_device, dtype_name, free_memory, usual_dtype
from vae_lib.engine import Compute, Operation
from vae_lib.errors import InputError
from vae_lib.files import check_outputs
from vae_lib.networks import TAESD, Network, WanVAE
from vae_lib.planning import DEFAULT_ORDER, PROFILES, Planner, Route
from vae_lib.units import size_text


def run_decode(options: argparse.Namespace) -> None:
    if options.output is None and options.tensor is None:
        raise InputError("Nothing to write: give -o OUT.png, or --tensor OUT.safetensors.")
    latents, metadata = load_latents(options.latents)
    pictures = [] if options.output is None else picture_names(options.output, len(latents))
    check_outputs([*pictures, *filter(None, [options.tensor])], [options.latents, options.vae, options.taesd])
    job = Job(options, Operation.DECODE)
    space = job.space(latents.shape[1], metadata)
    unscaled = space.for_vae(latents)
    height, width = (side * job.downscale for side in unscaled.shape[2:])
    for path in pictures:
        check_picture(path, width, height, job.picture_channels)
    with job.ladder() as ladder, PeakMemory(ladder.device, options.measure) as peak:
        outcome = ladder.decode(unscaled, latents.to(torch.float32))
    written = _write_decoded(outcome, options, pictures, metadata.get("parameters"))
    job.report(outcome, peak.known, written)


def _write_decoded(
    outcome: Outcome, options: argparse.Namespace, pictures: Sequence[Path], parameters: str | None
) -> list[Path]:
    """Write what was asked for; where something fails, the rest is written all the same, and the error says where."""
    image = outcome.result.float().cpu()
    written: list[Path] = []
    problems: list[str] = []
    tensors = [] if options.tensor is None else [options.tensor]
    for path in tensors:
        try:
            save_safetensors({"image": image.contiguous()}, path, {"route": outcome.plan.route.value})
            written.append(path)
        except InputError as error:
            problems.append(str(error))
    for item, path in zip(image, pictures, strict=False):
        try:
            write_picture(item, path, parameters)
            written.append(path)
        except InputError as error:
            problems.append(str(error))
    if problems:
        safe = f" What was written is in {', '.join(map(str, written))}." if written else ""
        raise InputError(f"{problems[0]}{safe} The latents are untouched in {options.latents}.")
    return [*written[len(tensors) :], *tensors]


def run_encode(options: argparse.Namespace) -> None:
    check_outputs([options.output], [options.image, options.vae, options.taesd])
    job = Job(options, Operation.ENCODE)
    space = job.space(job.latent_channels, {})
    picture = read_picture(options.image, job.downscale * space.patch, job.picture_channels)
    with job.ladder() as ladder, PeakMemory(ladder.device, options.measure) as peak:
        outcome = ladder.encode(picture)
    latents = outcome.result.float().cpu()
    latents = space.of_taesd(latents) if outcome.scaled else space.for_diffusion(latents)
    metadata = space.metadata()
    tensors = {"latents": latents.contiguous()}
    try:
        save_safetensors(tensors, options.output, metadata)
    except InputError as error:
        rescue = Path(tempfile.mkdtemp(prefix="vae-guard-")) / "latents.safetensors"
        save_safetensors(tensors, rescue, metadata)
        raise InputError(f"{error} The latents were kept in {rescue} instead.") from error
    job.report(outcome, peak.known, [options.output])


class Job:
    """The VAE, the device and the route that the options of decode and encode ask for.

    Raises:
        VAEGuardError: when something is missing, or a network cannot do what is asked of it.
    """

    def __init__(self, options: argparse.Namespace, operation: Operation) -> None:
        self.options, self.operation = options, operation
        self.device = choose_device("cpu" if options.route == "cpu" else options.device)
        self.dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(self.device)
        self.loaded: LoadedVAE | None = None
        self.tiny: LoadedVAE | None = None
        self.vae: Network | None = None
        self.taesd: TAESD | None = None
        if options.route == "taesd" and options.taesd is None:
            raise InputError("The route taesd needs the tiny autoencoder's file: give it with --taesd FILE.")
        if options.route != "taesd":
            if options.vae is None:
                raise InputError("A VAE is needed: give its file with --vae FILE.")
            self.loaded = load_vae(options.vae, dtype=self.dtype, device=self.device, kind="VAE")
            self.vae = self.loaded.exact
            assert self.vae is not None
            self._check_half(self.vae, options.vae)
        if options.taesd is not None and options.route in ("auto", "taesd"):
            self.tiny = load_vae(options.taesd, dtype=self.dtype, device=self.device, kind="TAESD")
            self.taesd = self.tiny.tiny
            assert self.taesd is not None
            self._check_half(self.taesd, options.taesd)
            self._check_taesd(self.taesd)

    def _check_half(self, network: Network | TAESD, path: Path) -> None:
        if getattr(network, self.operation.half) is None:
            if isinstance(network, TAESD) and network.video:
                raise InputError(
                    f"{path.name} is a TAESD of a video model, of which VAE Guard has only the decoder, so it cannot "
                    f"{self.operation.value}; take the VAE alone."
                )
            raise InputError(
                f"{path.name} holds only {self.operation.other_half}, so it cannot {self.operation.value}; give a file "
                "with both halves."
            )

    def _check_taesd(self, tiny: TAESD) -> None:
        if self.loaded is None:
            return
        wanted, vae = self.loaded.identity.latent_channels, self.options.vae.name
        if tiny.latent_channels != wanted:
            other = f"takes latents of {tiny.latent_channels} channels and those of {vae} have {wanted}"
        elif tiny.video != isinstance(self.vae, WanVAE):
            other = f"takes other latents than those of {vae}"
        else:
            return
        raise InputError(
            f"{self.options.taesd.name} {other}: it is the tiny autoencoder of another family. Give that of this VAE's "
            "family, or leave --taesd out."
        )

    @property
    def latent_channels(self) -> int:
        network = self.vae or self.taesd
        assert network is not None
        return network.latent_channels

    @property
    def downscale(self) -> int:
        return TAESD.downscale if self.vae is None else self.vae.downscale

    @property
    def picture_channels(self) -> int:
        """Channels of the picture that comes out, or goes in."""
        if self.vae is None:
            return 3
        config = self.vae.config
        return config.out_channels if self.operation is Operation.DECODE else config.in_channels

    def space(self, channels: int, metadata: dict[str, str]) -> LatentSpace:
        """Factors as given by hand, else the latents file's own, else the VAE's family's.

        Raises:
            InputError: when the latents are not of this VAE, or nothing tells their factors.
        """
        if self.loaded is None:
            assert self.tiny is not None
            check_channels(self.tiny.identity, channels)
            assert self.tiny.space is not None
            is_packed = self.operation is Operation.ENCODE or channels != self.tiny.identity.latent_channels
            return self.tiny.space if is_packed else LatentSpace(1.0)
        check_channels(self.loaded.identity, channels)
        options, identity = self.options, self.loaded.identity
        own = space_in(metadata, "The latents")
        theirs = None if own is None else family_of_space(channels, own)
        if theirs is not None and identity.family is not None and not theirs.shares_latents(identity.family):
            print(
                f"vae_lib: The latents say that they are {theirs.name}'s, and {options.vae.name} is the VAE of "
                f"{identity.family.name}: the picture will be wrong. Choose {theirs.name}'s VAE.",
                file=sys.stderr,
            )
        if channels != identity.latent_channels or self.operation is Operation.ENCODE:
            space = self.loaded.space
        elif own is not None:
            space = own
        elif self.loaded.space is not None and self.loaded.space.patch > 1:
            space = LatentSpace(1.0)  # not packed: they are the VAE's own
        else:
            space = self.loaded.space
        given = options.scaling_factor, options.shift_factor
        if (
            given not in ((None, None), (1.0, None), (1.0, 0.0))
            and space is not None
            and not isinstance(space.scale, float)
        ):
            raise InputError(
                f"--scaling-factor and --shift-factor are one number for all channels, and the latents of "
                f"{options.vae.name} have a mean and a deviation for each; leave them out, or give "
                "--scaling-factor 1 for latents as the VAE gives them."
            )
        if options.scaling_factor is not None:
            shift = space.shift if space is not None and isinstance(space.shift, float) else 0.0
            space = LatentSpace(options.scaling_factor, shift, space.patch if space is not None else 1)
        elif space is None:
            space = LatentSpace.of(identity.likely_family(), {})
            self._warn(f"{options.vae.name}: {identity.explanation} {identity.likely_family().name}'s scaling factor "
                       f"{space.scale} and shift factor {space.shift} are assumed.")  # fmt: skip
        elif identity.doubt is not None and own is None:
            self._warn(f"{options.vae.name}: {identity.doubt}")
        return space if options.shift_factor is None else replace(space, shift=options.shift_factor)

    @staticmethod
    def _warn(sentence: str) -> None:
        print(
            f"vae_lib: {sentence} If colours or contrast look wrong, give --scaling-factor and --shift-factor.",
            file=sys.stderr,
        )

    @contextmanager
    def ladder(self) -> Iterator[Ladder]:
        """The ladder with a progress bar, which shows after a second and leaves nothing behind."""
        options = self.options
        order = DEFAULT_ORDER if options.route == "auto" else (Route.named(options.route),)
        planner = Planner(free_memory, PROFILES)
        if options.budget is not None:
            planner = planner.with_free(self.device, options.budget)
        if self.vae is not None:
            compute = Compute(self.device, self.dtype)
            PROFILES.check(self.vae, compute, lambda text: print(f"vae_lib: {text}", file=sys.stderr))
        bar = tqdm(delay=1, leave=False, unit="band", file=sys.stderr, disable=None)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield Ladder(
                self.vae, self.taesd, self.device, self.dtype, order, planner, wrap=options.seamless,
                progress=progress,
            )  # fmt: skip
        finally:
            bar.close()

    def report(self, outcome: Outcome, peak_bytes: int | None, written: Sequence[Path]) -> None:
        described: dict[str, Any] = {
            "route": outcome.plan.route.value,
            "bands": outcome.plan.bands,
            "band_rows": outcome.plan.band_rows,
            "predicted_peak_bytes": outcome.plan.peak_bytes,
            "peak_bytes": peak_bytes,
            "seconds": round(outcome.seconds, 3),
            "reason": wording.line(outcome),
            "dtype": dtype_name(outcome.plan.dtype),
            "device": outcome.plan.device.type,
            "files": [str(path) for path in written],
        }
        if self.options.json:
            print(json.dumps(described))
            return
        files = ", ".join(described["files"])
        memory = "" if peak_bytes is None else f" and {size_text(peak_bytes)}"
        print(f"{files}: {wording.line(outcome)}; took {outcome.seconds:.1f} s{memory}.")
        if not outcome.plan.route.exact:
            print("This is TAESD's approximation; decode again with --route auto and more memory for the exact one.")
