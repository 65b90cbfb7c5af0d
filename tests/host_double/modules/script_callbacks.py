"""The events that extensions listen to. Names and signatures are the host's."""

import dataclasses
import inspect
from collections import namedtuple

from modules import errors

CATEGORIES = [
    "app_started", "model_loaded", "ui_tabs", "ui_train_tabs", "ui_settings", "before_image_saved",
    "image_saved", "extra_noise", "cfg_denoiser", "cfg_denoised", "cfg_after_cfg", "before_component",
    "after_component", "image_grid", "infotext_pasted", "script_unloaded", "before_ui", "on_reload",
    "list_optimizers", "list_unets", "before_token_counter",
]  # fmt: skip


@dataclasses.dataclass
class ImageSaveParams:
    image: object
    p: object
    filename: str
    pnginfo: dict


AfterCFGCallbackParams = namedtuple("AfterCFGCallbackParams", ["x", "sampling_step", "total_sampling_steps"])


@dataclasses.dataclass
class ScriptCallback:
    script: str
    callback: object
    name: str = "unnamed"


callback_map: dict = {f"callbacks_{category}": [] for category in CATEGORIES}


def clear_callbacks():
    for callbacks in callback_map.values():
        callbacks.clear()


def remove_current_script_callbacks():
    filename = inspect.stack()[1].filename
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.script != filename]


def remove_callbacks_for_function(callback_func):
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.callback != callback_func]


def _registrar(category):
    def register(callback, *, name=None):
        filename = next(frame.filename for frame in inspect.stack() if frame.filename != __file__)
        callback_map[f"callbacks_{category}"].append(ScriptCallback(filename, callback, name or category))

    return register


def _caller(category):
    """Call every listener; one that fails is reported and does not stop the others. Lists add up (tabs)."""

    def call(*args, **kwargs):
        results = []
        for listener in list(callback_map[f"callbacks_{category}"]):
            try:
                result = listener.callback(*args, **kwargs)
            except Exception:
                errors.report(f"Error executing callback {category} for {listener.script}", exc_info=True)
            else:
                results += result if isinstance(result, list) else []
        return results

    return call


for _category in CATEGORIES:
    globals()["on_before_reload" if _category == "on_reload" else f"on_{_category}"] = _registrar(_category)
    globals()["app_reload_callback" if _category == "on_reload" else f"{_category}_callback"] = _caller(_category)
