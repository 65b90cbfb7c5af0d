"""A video's latents on disk while it is decoded, so that nothing loses them. The command line decodes what stays."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vae_lib.checkpoints import unfinished
from vae_lib.checkpoints.unfinished import Latents
from vae_lib.errors import InputError
from vae_lib.guard.host import HostVAE
from vae_lib.guard.notices import Notices
from vae_lib.units import size_text

FOLDER = "videos"  # below that of the pictures' latents
_HOW = "`python -m vae_lib decode FILE --vae VAE -o video.mp4` in the extension's folder"


class KeptVideos:
    """Those that are not decoded yet, or could not be. They are in no list: their files are all there is of them."""

    def __init__(self, folder: Path, notices: Notices) -> None:
        self._folder, self._notices = folder / FOLDER, notices

    def restore(self) -> None:
        """Say what earlier runs did not finish."""
        if files := list(self._folder.glob("*.safetensors")):
            count = "a video is" if len(files) == 1 else f"{len(files)} videos are"
            self._notices.tell_once(
                f"videos {files[0]}",
                f"{count} not decoded yet; the latents are in {self._folder}. Decode them with {_HOW}, or remove the "
                "files.",
            )

    def hold(self, vae: HostVAE, video: Tensor, disk_mb: int) -> Path | None:
        """Write the sampler's latents (B, C, T, h, w) before they are decoded; None where they are not to be kept."""
        if not disk_mb:
            return None
        latents = Latents(video.detach().to("cpu").contiguous(), vae.space, vae.model_name)
        try:
            path = unfinished.write(self._folder, latents, disk_mb)
        except InputError as error:
            self._say(f"the video's latents could not be saved before the decode: {error}")
            return None
        if path is None:
            self._say(
                f"the video's latents take {size_text(latents.tensor.nbytes)}, more than the settings allow on disk, "
                "so they are not kept in case the decode fails. Settings > VAE Guard can allow more."
            )
        return path

    def finished(self, path: Path | None) -> None:
        """The video is there."""
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._say(f"{path} could not be removed: {error.strerror}.")

    def failed(self, path: Path | None) -> str:
        """Nothing could decode it: say where it is; the sentence for the error ("" if it is nowhere)."""
        if path is None:
            return ""
        sentence = (
            f"the video could not be decoded, but it is not lost: its latents are in {path}. Free some memory or "
            f"choose another VAE, then decode them with {_HOW}."
        )
        self._notices.tell(sentence, warning=True)
        return sentence

    def _say(self, text: str) -> None:
        self._notices.tell_once(text, text)
