"""What the host does to pictures after their decode, noted before it and done once more to latents decoded again.

The host's own ``process_images`` does it: it is given a processing object that has the latents already, so that face
restoration, colour correction, the original around an inpainted mask, file names and saving are the host's in every
detail, in whichever of the family's members this runs.

What was noted may come back from a file, and a file from anyone. So only what is on the lists here is noted and taken
back, with the type that the host declares for it; output folders and settings are the host's own as they are now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from modules import processing, scripts, shared
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.guard.generation import Again

_LISTS = ("prompts", "negative_prompts", "seeds", "subseeds")  # of the batch; all_... of the whole generation
_BUILT_IN = "extensions-builtin"  # the folder of the extensions that come with the host
_HOSTS = ("outpath_samples", "outpath_grids", "refiner_checkpoint")
_OVERLAYS = "postprocess_maskoverlay"
_HOOKS = (
    "postprocess_batch", "postprocess_batch_list", "postprocess_image", "postprocess_image_after_composite", _OVERLAYS,
)  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (int,), "str": (str,)}
_UNFIT_FOR_A_NAME = re.compile(r"[/\\:\x00-\x1f]|^[. ]+$")
# Settings of what the host shows and saves beside the picture, which is not made once more.
_BESIDE_IT = (
    "return_mask", "return_mask_composite", "save_mask", "save_mask_composite", "save_images_before_face_restoration",
    "save_images_before_color_correction",
)  # fmt: skip
_FIXED = ("sd_model_name", "sd_model_hash", "iteration")  # which process_images would set again


def noted(p: Any, vae: Mapping[str, Any]) -> Afterwards:
    """Of a processing object that is at the decode of a batch; ``vae`` is the setting that chooses its VAE."""
    values = _taken(type(p), vars(p))
    values |= {name: list(getattr(p, name, None) or ()) for name in _LISTS}
    values["vae"] = dict(vae)
    values["is_img2img"] = isinstance(p, processing.StableDiffusionProcessingImg2Img)
    images = {"overlay_images": _overlays(p), "color_corrections": _as_images(getattr(p, "color_corrections", None))}
    own = {script.title(): list(_arguments(p, script)) for script in hosts_postprocessing(p.scripts)}
    values["postprocessing"] = {title: args for title, args in own.items() if _is_plain(args)}
    return Afterwards(values, {name: found for name, found in images.items() if found}, tuple(_not_repeated(p)))


def processing_of(
    latents: Latents,
    again: Again,
    settings: Mapping[str, Any],
    folder: Callable[[str, str], str],
    as_sampled: Callable[[Tensor], Tensor],
) -> Any:
    """A processing object whose sampling is over: it is left to ``process_images``.

    Args:
        settings: to override, those that choose the checkpoint of these latents and its VAE.
        folder: asked for that of "samples" and "grids" of a tab.
        as_sampled: asked when the model is loaded: the latents (B, C, h, w) in the shape that its sampler gives them.
    """
    found, count = latents.afterwards.values, len(latents.tensor)
    kind = "Img2Img" if found.get("is_img2img") is True else "Txt2Img"
    base = getattr(processing, f"StableDiffusionProcessing{kind}")
    values = _taken(base, found)
    p = _class(base, values, as_sampled)()
    vars(p).update({name: value for name, value in values.items() if name not in _FIXED})
    for name in _LISTS:
        given, usual = found.get(name) or (), "" if "prompts" in name else -1
        is_sound = _is_list(given, type(usual)) and len(given) >= count
        known = list(given[:count]) if is_sound else [usual] * count
        setattr(p, name, known)
        setattr(p, f"all_{name}", known)
    p.outpath_samples, p.outpath_grids = (folder(name, kind.lower()) for name in ("samples", "grids"))
    p.seed, p.subseed, p.n_iter, p.batch_size = p.all_seeds, p.all_subseeds, 1, count
    images = latents.afterwards.images
    p.overlay_images = list(images.get("overlay_images", ())) or None
    p.color_corrections = [np.asarray(image) for image in images.get("color_corrections", ())] or None
    beside = {key: False for key in _BESIDE_IT if getattr(shared.opts, key, False)}
    if p.overlay_images and not getattr(shared.opts, "overlay_inpaint", True):
        beside["overlay_inpaint"] = True  # they are those that were laid over
    p.override_settings = {**beside, **settings}
    for key in p.override_settings:  # the host puts back only what is in its file
        shared.opts.data.setdefault(key, shared.opts.get_default(key))
    p.override_settings_restore_afterwards = p.disable_extra_networks = p.do_not_save_grid = True
    p.vae_guard_again, p.vae_guard_latents = again, latents.tensor
    own = found.get("postprocessing")
    p.scripts = _HostsOwn(kind == "Img2Img", own if isinstance(own, dict) else {})
    return p


def noted_vae(latents: Latents, settings: Mapping[str, type]) -> dict[str, Any]:
    """Those of the ``settings`` that choose a VAE, names and types, that ``noted`` was given for these latents."""
    found = latents.afterwards.values.get("vae")
    chosen = {name: found.get(name) for name in settings} if isinstance(found, dict) else {}
    return {
        name: value
        for name, value in chosen.items()
        if isinstance(value, settings[name]) and (isinstance(value, str) or _is_list(value, str))
    }


def vae_entries(p: Any) -> dict[str, str | None]:
    """The infotext's entries of the VAE, if it is another one than at the first decode."""
    before, names = p.vae_guard_before, ("sd_vae_name", "sd_vae_hash")
    if all(getattr(p, name, None) == before.get(name) for name in names):
        return {}
    shown = shared.opts.add_vae_name_to_info, shared.opts.add_vae_hash_to_info
    return {
        "VAE hash": p.sd_vae_hash if shown[1] else None,
        "VAE": p.sd_vae_name if shown[0] else None,
    }


def _taken(host_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``values`` the host's class declares to be a number, a text or a switch, and is one."""
    declared = _declared(host_class)
    return {
        name: value
        for name, value in values.items()
        if name in declared and name not in _HOSTS and _may_be(name, declared[name], value)
    }


def _declared(host_class: type) -> dict[str, str]:
    """The types of a dataclass's fields, or, where it has none, of what its base is made with."""
    types = {field.name: field.type for field in dataclasses.fields(host_class)}
    if not types:
        types = {name: made.annotation for name, made in inspect.signature(host_class.__mro__[-2]).parameters.items()}
    return {name: re.sub(r"<class '(\w+)'>", r"\1", str(kind)).removesuffix(" | None") for name, kind in types.items()}


def _may_be(name: str, declared: str, value: Any) -> bool:
    if name == "paste_to":  # left, top, width, height
        return value is None or (_is_list(value, int) and len(value) == 4)
    if declared == "list[str]":  # styles
        return _is_list(value, str)
    if declared not in _TYPES or not (value is None or isinstance(value, _TYPES[declared])):
        return False
    # Hosts put some texts into the names of files as they are.
    return not isinstance(value, str) or "prompt" in name or not _UNFIT_FOR_A_NAME.search(value)


def _is_list(value: Any, of: type) -> bool:
    return isinstance(value, (list, tuple)) and all(type(item) is of for item in value)


def _class(base: type, values: Mapping[str, Any], as_sampled: Callable[[Tensor], Tensor]) -> type:
    """Of a processing object that has been at its start, its prompts and its sampling before."""

    def sample(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return as_sampled(self.vae_guard_latents.to(shared.device))

    steps = ("init", "setup_prompts", "setup_conds", "parse_extra_network_prompts")
    fixed = {name: _fixed(values[name]) for name in _FIXED if name in values}
    return type(
        base.__name__,
        (base,),
        {**dict.fromkeys(steps, _nothing), "sample": sample, "vae_guard_before": values, **fixed},
    )


def _nothing(self: Any, *args: Any, **kwargs: Any) -> None:
    """Not once more."""


def _fixed(value: Any) -> property:
    return property(lambda self: value, _nothing)


class _HostsOwn:
    """In the place of a script runner: nothing is called but the host's own post-processing."""

    scripts: Sequence[Any] = ()
    alwayson_scripts: Sequence[Any] = ()
    selectable_scripts: Sequence[Any] = ()

    def __init__(self, is_img2img: bool, arguments: Mapping[str, Sequence[Any]]) -> None:
        runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
        known = {script.title(): script for script in hosts_postprocessing(runner)}
        self._steps = [
            (known[title], args)
            for title, args in arguments.items()
            if title in known and isinstance(args, (list, tuple))
        ]

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        for script, arguments in self._steps:
            script.postprocess_image(p, pp, *arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def hosts_postprocessing(runner: Any) -> list[Any]:
    """What *Settings > Postprocessing* adds to txt2img and img2img."""
    kind = "ScriptPostprocessingForMainUI"
    return [script for script in getattr(runner, "alwayson_scripts", ()) if type(script).__name__ == kind]


def _not_repeated(p: Any) -> list[str]:
    """Titles of scripts that act on pictures after the decode; those whose controls were left alone do nothing."""
    own = hosts_postprocessing(p.scripts)
    found = []
    for script in getattr(p.scripts, "alwayson_scripts", ()):
        acts = any(_has(script, hook) for hook in _HOOKS if hook != _OVERLAYS or not _is_built_in(script))
        if acts and script not in own and is_on(p, script):
            found.append(str(script.title()))
    selected = (getattr(p, "script_args", None) or (0,))[0]
    chosen = getattr(p.scripts, "selectable_scripts", ())
    if isinstance(selected, int) and 0 < selected <= len(chosen):
        found.append(str(chosen[selected - 1].title()))
    if _are_precise(p):
        found.append("The inpainted part's blend by a mask in fp32")
    return found


def _are_precise(p: Any) -> bool:
    """Whether the host lays over pictures with masks of floating-point numbers (Neo has a setting), which no file of
    ours holds.
    """
    return any(isinstance(overlay, tuple) for overlay in getattr(p, "overlay_images", None) or ())


def _has(script: Any, hook: str) -> bool:
    return getattr(type(script), hook, None) is not getattr(scripts.Script, hook, None)


def _is_built_in(script: Any) -> bool:
    return _BUILT_IN in Path(getattr(script, "filename", None) or "").parts


def _overlays(p: Any) -> list[Image.Image]:
    """What the host lays over each picture of the batch.

    Its own scripts give theirs when they are asked, before the decode as well as after it: soft inpainting makes them
    of the latents as they were sampled. What others' scripts would do when asked twice nobody knows.
    """
    own = getattr(p, "overlay_images", None) or () if getattr(shared.opts, "overlay_inpaint", True) else ()
    if _are_precise(p):
        return []
    asked = [
        script
        for script in getattr(p.scripts, "alwayson_scripts", ())
        if _has(script, _OVERLAYS) and _is_built_in(script)
    ]
    if not asked:
        return _as_images(own)
    found = []
    for index in range(len(p.prompts)):
        overlay = own[index] if index < len(own) else None
        given = scripts.PostProcessMaskOverlayArgs(index, getattr(p, "mask_for_overlay", None), overlay)
        for script in asked:
            with contextlib.suppress(Exception):  # the host goes on, too
                script.postprocess_maskoverlay(p, given, *_arguments(p, script))
        found.append(given.overlay_image)
    return _as_images(found) if all(found) else []


def _arguments(p: Any, script: Any) -> Sequence[Any]:
    if script.args_from is None:
        return ()
    return (getattr(p, "script_args", None) or ())[script.args_from : script.args_to]


def is_on(p: Any, script: Any) -> bool:
    """Whether a control of it is not as the page shows it at first; one without controls is always on."""
    arguments = _arguments(p, script)
    if not arguments:
        return True
    first = [argument.value for argument in getattr(getattr(script, "api_info", None), "args", ())]
    return any(_is_plain(now) and now != before for now, before in zip(arguments, first, strict=False))


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it was."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _as_images(items: Sequence[Any] | None) -> list[Image.Image]:
    """Of arrays, too; what is the same in a batch stays the same."""
    items = [getattr(item, "image", item) for item in items or ()]  # SD.Next's colours are of one
    made = {id(item): item if isinstance(item, Image.Image) else Image.fromarray(item) for item in items}
    return [made[id(item)] for item in items]
