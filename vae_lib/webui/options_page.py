"""The section Settings > VAE Guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from vae_lib.guard import Setting
from vae_lib.guard.settings import FALLBACKS, MODES, OPTIONS, spare_devices
from vae_lib.ui.events import QUIET
from vae_lib.webui.host import WebUI


def settings(host: WebUI) -> Sequence[Setting]:
    """What is shown of each option; keys, defaults and limits are those of ``guard.settings``."""
    mode = _Mode()
    return (
        _shown(
            "fixed", "When to fall back from the full VAE decode", mode.radio, {"choices": list(MODES)},
            "automatic: when the picture needs more memory than is free; every route but TAESD gives the same picture",
        ),
        _shown(
            "threshold", "Fixed threshold: free memory in GB below which the full decode is skipped", mode.slider,
            {"minimum": 0, "maximum": 80, "step": 0.25}, "VRAM on a GPU; only with \"Fixed threshold\" above",
        ),
        _shown(
            "fallback", "Fall back to, in this order", host.many_of(), {"choices": list(FALLBACKS)},
            "TAESD is approximate; its latents are kept so that the picture can be decoded again in full",
        ),
        _shown(
            "reserve_mb", "Memory to keep free for other programs, in MB", gr.Slider,
            {"minimum": 0, "maximum": 8192, "step": 64}, "a picture that would leave less falls back",
        ),
        _shown(
            "spare", "Decode on another device, when this one has too little memory", gr.Dropdown,
            {"choices": spare_devices()},
            'where the route "CPU" computes: a second GPU, if there is one, is much faster; its own memory counts',
        ),
        _shown("encode", "Fall back when encoding, too", gr.Checkbox, info="img2img, inpaint, hires fix"),
        _shown(
            "keep", "Generations whose latents are kept in RAM", gr.Slider,
            {"minimum": 0, "maximum": 64, "step": 1}, "to decode them again; 0.1 to 2 MB each for a 1024x1024 picture",
        ),
        _shown(
            "disk_mb", "Most disk space for latents of pictures that are not exact yet, in MB", gr.Slider,
            {"minimum": 0, "maximum": 4096, "step": 16},
            "written before each decode, removed with the exact picture; what is left is in VAE > Unfinished. 0: off",
        ),
    )  # fmt: skip


class _Mode:
    """The choice between prediction and threshold, without which the threshold's slider has no effect."""

    def __init__(self) -> None:
        self._radio: Any = None

    def radio(self, **arguments: Any) -> Any:
        self._radio = gr.Radio(**arguments)
        return self._radio

    def slider(self, **arguments: Any) -> Any:
        """Disabled while the prediction decides."""
        radio = self._radio
        if radio is None:  # shown elsewhere, among the quick settings
            return gr.Slider(**arguments)
        slider = gr.Slider(interactive=radio.value == MODES[1], **arguments)
        radio.change(
            lambda mode: gr.update(interactive=mode == MODES[1]), radio, slider, **QUIET
        )  # fmt: skip
        return slider


def _shown(name: str, label: str, component: Any, arguments: dict[str, Any] | None = None, info: str = "") -> Setting:
    option = OPTIONS[name]
    return Setting(option.key, option.default, label, component, arguments, info)
