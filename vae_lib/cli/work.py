"""The commands that compute: decode and encode. All that can be known to fail is found before the work."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints import LoadedVAE, Meeting, OpenSpace, load_latents, load_vae, save_safetensors, space_in
from vae_lib.checkpoints.evidence import join
from vae_lib.cli.pictures import check_picture, picture_names, read_picture, write_picture
from vae_lib.cli.videos import check_video, frame_names, write_video
from vae_lib.cli.videos import is_video as is_video_file
from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import DTYPES, PeakMemory, choose_device, dtype_name, free_memory, usual_dtype
from vae_lib.engine import Compute, Operation
from vae_lib.errors import InputError
from vae_lib.files import check_outputs
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.networks import TAESD, Network, frames_of
from vae_lib.planning import DEFAULT_ORDER, PROFILES, Planner, Route
from vae_lib.units import size_text

MOST_NAMES = 8  # of files, in a line


def run_decode(options: argparse.Namespace) -> None:
    if options.output is None and options.tensor is None:
        raise InputError("Nothing to write: give -o OUT.png, or --tensor OUT.safetensors.")
    latents, metadata = load_latents(options.latents, videos=True)
    is_video = latents.ndim == 5
    pictures = [] if options.output is None or is_video else picture_names(options.output, len(latents))
    inputs = [options.latents, options.vae, options.taesd]
    check_outputs([*pictures, *filter(None, [options.tensor])], inputs)
    job = Job(options, Operation.DECODE, is_video)
    if is_video:
        latents = latents[0].transpose(0, 1)  # (T, C, h, w)
        pictures = job.frames(len(latents))
        check_outputs([*pictures, *filter(None, [options.tensor])], inputs)
    given = job.given(latents, metadata)
    for path in pictures:
        if not is_video_file(path):
            check_picture(path, *given.picture_size, job.picture_channels)
    with job.ladder() as ladder, PeakMemory(ladder.device, options.measure) as peak:
        outcome = ladder.decode(given.for_vae, given.for_taesd)
    written = _write_decoded(outcome, options, pictures, metadata.get("parameters"))
    job.report(outcome, peak.known, written)


def _write_decoded(
    outcome: Outcome, options: argparse.Namespace, pictures: Sequence[Path], parameters: str | None
) -> list[Path]:
    """Write what was asked for; where something fails, the rest is written all the same, and the error says where."""
    image = outcome.result.float().cpu()
    items = [image] if len(pictures) == 1 and is_video_file(pictures[0]) else list(image)
    written: list[Path] = []
    problems: list[str] = []
    tensors = [] if options.tensor is None else [options.tensor]
    for path in tensors:
        try:
            save_safetensors({"image": image.contiguous()}, path, {"route": outcome.plan.route.value})
            written.append(path)
        except InputError as error:
            problems.append(str(error))
    for item, path in zip(items, pictures, strict=False):
        try:
            if is_video_file(path):
                write_video(item, path, options.fps)
            else:
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
    space, metadata = job.written()
    picture = read_picture(options.image, job.downscale * space.side, job.picture_channels)
    with job.ladder() as ladder, PeakMemory(ladder.device, options.measure) as peak:
        outcome = ladder.encode(picture)
    result = outcome.result.float().cpu()
    latents = space.of_taesd(result) if outcome.scaled else space.for_diffusion(VAELatents(result))
    tensors = {"latents": latents.contiguous()}
    try:
        save_safetensors(tensors, options.output, metadata)
    except InputError as error:
        rescue = Path(tempfile.mkdtemp(prefix="vae-guard-")) / "latents.safetensors"
        save_safetensors(tensors, rescue, metadata)
        raise InputError(f"{error} The latents were kept in {rescue} instead.") from error
    job.report(outcome, peak.known, [options.output])


def _question(error: OpenSpace) -> InputError:
    """The sentence, and the option that settles it."""
    names = [f'"{family.name}"' if " " in family.name else family.name for family in error.candidates]
    ask = f" Say whose latents they are with --family {join(names, 'or')}." if names else ""
    return InputError(f"{error}{ask}")


@dataclass(frozen=True)
class Given:
    """Latents for the VAE and for TAESD; None where the one or the other is not there."""

    for_vae: VAELatents | None
    for_taesd: SamplerLatents | None
    downscale: int

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        latents = self.for_taesd if self.for_vae is None else self.for_vae
        assert latents is not None
        return self.downscale * latents.shape[3], self.downscale * latents.shape[2]


class Job:
    """The VAE, the device and the route that the options of decode and encode ask for.

    Raises:
        VAEGuardError: when something is missing, or a network cannot do what is asked of it.
    """

    def __init__(self, options: argparse.Namespace, operation: Operation, is_video: bool = False) -> None:
        self.options, self.operation = options, operation
        if is_video and (options.taesd is not None or options.route == "taesd"):
            raise InputError("These are a video's latents, and TAESD decodes pictures; take the VAE alone.")
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
            self.loaded = load_vae(options.vae, dtype=self.dtype, device=self.device, kind="VAE", video=is_video)
            self.vae = self.loaded.exact
            assert self.vae is not None
            self._check_half(self.vae, options.vae)
        elif options.vae is not None:  # it says whose latents they are
            self.loaded = load_vae(options.vae, kind="VAE", weights=False)
        if options.taesd is not None and options.route in ("auto", "taesd"):
            self.tiny = load_vae(options.taesd, dtype=self.dtype, device=self.device, kind="TAESD")
            self.taesd = self.tiny.tiny
            assert self.taesd is not None
            self._check_half(self.taesd, options.taesd)
        self.meeting = Meeting(self.loaded, self.tiny, options.family)

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

    @property
    def downscale(self) -> int:
        return TAESD.downscale if self.vae is None else self.vae.downscale

    def frames(self, latents: int) -> list[Path]:
        """Where the frames of a video of so many latents go: a file for each, or one video.

        Raises:
            InputError: when it cannot be written.
        """
        assert self.vae is not None
        path = self.options.output
        if path is None:
            return []
        if is_video_file(path):
            check_video(path, self.picture_channels)
            return [path]
        return frame_names(path, frames_of(self.vae.config, latents))

    @property
    def picture_channels(self) -> int:
        """Channels of the picture that comes out, or goes in."""
        if self.vae is None:
            return 3
        config = self.vae.config
        return config.out_channels if self.operation is Operation.DECODE else config.in_channels

    def given(self, latents: Tensor, metadata: Mapping[str, str]) -> Given:
        """Latents of a file, as the networks take them.

        Raises:
            InputError: when they are not theirs, or nothing tells whose they are.
        """
        own = space_in(metadata, "The latents")
        sampled = SamplerLatents(latents.float())
        try:
            space = self._by_hand(lambda: self.meeting.space_of(latents, own))
            scaled = None if self.tiny is None else self.meeting.for_taesd(sampled, space)
        except OpenSpace as error:
            raise _question(error) from error
        if own is None:
            self._say_what_is_guessed()
        for_vae = None if self.vae is None or space is None else space.for_vae(sampled)
        return Given(for_vae, scaled, self.downscale)

    def written(self) -> tuple[LatentSpace, Mapping[str, str]]:
        """The space of the latents that are made, and what their file is to say of it.

        Raises:
            InputError: when nothing tells whose they are.
        """
        packed = self.meeting.packed_by_taesd()
        if packed is not None:
            return packed
        try:
            space = self._by_hand(self.meeting.sampler_space)
        except OpenSpace as error:
            raise _question(error) from error
        assert space is not None
        self._say_what_is_guessed()
        return space, space.metadata()

    def _say_what_is_guessed(self) -> None:
        by_hand = self.options.scaling_factor is not None or self.options.shift_factor is not None
        if self.meeting.guessed is not None and not by_hand:
            print(f"vae_lib: {self.meeting.guessed} If they are another's, give --family.", file=sys.stderr)

    def _by_hand(self, known: Callable[[], LatentSpace | None]) -> LatentSpace | None:
        """The space that is known, with the factors that the user gives instead."""
        scale, shift = self.options.scaling_factor, self.options.shift_factor
        try:
            space = known()
        except OpenSpace:
            if scale is None:
                raise
            space = None
        if scale is None and shift is None:
            return space
        by_channel = space is not None and not isinstance(space.scale, float)
        if by_channel and (scale, shift) not in ((1.0, None), (1.0, 0.0)):
            raise InputError(
                f"--scaling-factor and --shift-factor are one number for all channels, and the latents of "
                f"{self.options.vae.name} have a mean and a deviation for each; leave them out, or give "
                "--scaling-factor 1 for latents as the VAE gives them."
            )
        if space is None or by_channel:
            space = LatentSpace(1.0, 0.0, 1 if space is None else space.patch)
        space = space if scale is None else replace(space, scale=scale)
        return space if shift is None else replace(space, shift=shift)

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
        if len(written) > MOST_NAMES:
            files = f"{written[0]} to {written[-1].name} ({len(written)} files)"
        memory = "" if peak_bytes is None else f" and {size_text(peak_bytes)}"
        print(f"{files}: {wording.line(outcome)}; took {outcome.seconds:.1f} s{memory}.")
        if not outcome.plan.route.exact:
            print("This is TAESD's approximation; decode again with --route auto and more memory for the exact one.")
