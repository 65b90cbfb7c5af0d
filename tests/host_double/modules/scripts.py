"""Loading scripts by path, the `Script` base class, and the runner that builds their UI and calls them."""

import inspect
import os
import re
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from modules import errors, extensions, paths, script_callbacks, script_loading

AlwaysVisible = object()
ScriptFile = namedtuple("ScriptFile", ["basedir", "filename", "path"])
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
current_basedir = paths.script_path
scripts_data: list = []
postprocessing_scripts_data: list = []


@dataclass
class PostSampleArgs:
    samples: object


@dataclass
class PostprocessImageArgs:
    image: object


@dataclass
class PostprocessBatchListArgs:
    images: list


@dataclass
class PostProcessMaskOverlayArgs:
    index: int
    mask_for_overlay: object
    overlay_image: object


@dataclass
class OnComponent:
    component: object


EVENTS = [
    "setup", "before_process", "process", "process_before_every_sampling", "before_process_batch",
    "before_hr", "after_extra_networks_activate", "process_batch", "postprocess", "postprocess_batch",
    "postprocess_batch_list", "post_sample", "on_mask_blend", "postprocess_image",
    "postprocess_maskoverlay", "postprocess_image_after_composite",
]  # fmt: skip


class Script:
    name = section = filename = args_from = args_to = tabname = group = controls = api_info = None
    infotext_fields = paste_field_names = None
    on_before_component_elem_id = on_after_component_elem_id = None
    alwayson = is_txt2img = is_img2img = setup_for_ui_only = False
    create_group = True

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def run(self, p, *args):
        pass

    def before_component(self, component, **kwargs):
        pass

    def after_component(self, component, **kwargs):
        pass

    def on_before_component(self, callback, *, elem_id):
        self.on_before_component_elem_id = [*(self.on_before_component_elem_id or []), (elem_id, callback)]

    def on_after_component(self, callback, *, elem_id):
        self.on_after_component_elem_id = [*(self.on_after_component_elem_id or []), (elem_id, callback)]

    def describe(self):
        return ""

    def elem_id(self, item_id):
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{tab}{title}_{item_id}"


def _ignore(self, *args, **kwargs):
    """The base class does nothing at this event."""


for _event in EVENTS:
    setattr(Script, _event, _ignore)


def basedir():
    return current_basedir


def list_scripts(scriptdirname, extension, *, include_extensions=True):
    own = Path(paths.script_path, scriptdirname)
    files = sorted(own.glob(f"*{extension}")) if own.is_dir() else []
    found = [ScriptFile(paths.script_path, p.name, str(p)) for p in files]
    for active in extensions.active() if include_extensions else ():
        found += active.list_files(scriptdirname, extension)
    return found


def list_files_with_name(filename):
    folders = [paths.script_path, *(extension.path for extension in extensions.active())]
    return [path for folder in folders if os.path.isfile(path := os.path.join(folder, filename))]


def load_scripts():
    """Forget all scripts and callbacks, then run every script; its folder leads sys.path while it loads."""
    global current_basedir, scripts_txt2img, scripts_img2img
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    syspath = sys.path
    for file in list_scripts("scripts", ".py"):
        try:
            if file.basedir != paths.script_path:
                sys.path = [file.basedir, *sys.path]
            current_basedir = file.basedir
            module = script_loading.load_module(file.path)
            for value in vars(module).values():
                if inspect.isclass(value) and issubclass(value, Script):
                    scripts_data.append(ScriptClassData(value, file.path, file.basedir, module))
        except Exception:
            errors.report(f"Error loading script: {file.filename}", exc_info=True)
        finally:
            sys.path, current_basedir = syspath, paths.script_path
    scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner()


class ScriptRunner:
    def __init__(self):
        self.scripts, self.selectable_scripts, self.alwayson_scripts = [], [], []
        self.titles, self.infotext_fields, self.paste_field_names = [], [], []
        self.inputs = [None]
        self.title_map: dict = {}
        self.on_before_component_elem_id: dict = {}
        self.on_after_component_elem_id: dict = {}

    def initialize_scripts(self, is_img2img):
        for group in (self.scripts, self.selectable_scripts, self.alwayson_scripts):
            group.clear()
        for data in scripts_data:
            try:
                script = data.script_class()
            except Exception:
                errors.report(f"Failed to initialize Script {data.module}", exc_info=True)
                continue
            script.filename, script.is_txt2img, script.is_img2img = data.path, not is_img2img, is_img2img
            script.tabname = "img2img" if is_img2img else "txt2img"
            visibility = script.show(is_img2img)
            script.alwayson = visibility is AlwaysVisible
            if visibility:
                self.scripts.append(script)
                (self.alwayson_scripts if script.alwayson else self.selectable_scripts).append(script)
        self.apply_on_before_component_callbacks()

    def apply_on_before_component_callbacks(self):
        for script in self.scripts:
            for wanted, known in (
                (script.on_before_component_elem_id, self.on_before_component_elem_id),
                (script.on_after_component_elem_id, self.on_after_component_elem_id),
            ):
                for elem_id, callback in wanted or ():
                    known.setdefault(elem_id, []).append((callback, script))
                if wanted:
                    wanted.clear()

    def create_script_ui(self, script):
        script.args_from = script.args_to = len(self.inputs)
        try:
            self.create_script_ui_inner(script)
        except Exception:
            errors.report(f"Error creating UI for {script.name}", exc_info=True)

    def create_script_ui_inner(self, script):
        from modules.api import models

        script.controls = script.ui(script.is_img2img)
        if script.controls is None:
            return
        script.name = script.title().lower()
        arguments = []
        for control in script.controls:
            argument = models.ScriptArg(label=control.label or "")
            for field in ("value", "minimum", "maximum", "step"):
                if (value := getattr(control, field, None)) is not None:
                    setattr(argument, field, value)
            choices = getattr(control, "choices", None)
            if choices is not None:
                argument.choices = [choice[0] if isinstance(choice, tuple) else choice for choice in choices]
            arguments.append(argument)
        script.api_info = models.ScriptInfo(
            name=script.name, is_img2img=script.is_img2img, is_alwayson=script.alwayson, args=arguments
        )
        self.infotext_fields += script.infotext_fields or []
        self.paste_field_names += script.paste_field_names or []
        self.inputs += script.controls
        script.args_to = len(self.inputs)

    def setup_ui_for_section(self, section, scriptlist=None):
        for script in self.alwayson_scripts if scriptlist is None else scriptlist:
            if script.alwayson and script.section != section:
                continue
            if script.create_group:
                with gr.Group(visible=script.alwayson) as script.group:
                    self.create_script_ui(script)
            else:
                self.create_script_ui(script)

    def prepare_ui(self):
        self.inputs = [None]

    def setup_ui(self):
        self.title_map = {script.title().lower(): script for script in self.scripts}
        self.titles = [script.title() for script in self.selectable_scripts]
        self.setup_ui_for_section(None)
        dropdown = gr.Dropdown(
            label="Script", elem_id="script_list", choices=["None", *self.titles], value="None", type="index"
        )
        self.inputs[0] = dropdown
        self.setup_ui_for_section(None, self.selectable_scripts)
        self.apply_on_before_component_callbacks()
        return self.inputs

    def run(self, p, *args):
        if not args or not args[0]:
            return None
        script = self.selectable_scripts[args[0] - 1]
        return script.run(p, *args[script.args_from : script.args_to])

    def script(self, title):
        return self.title_map.get(title.lower())

    def _tell(self, event, p, *leading, **kwargs):
        """A script that fails is reported on the console; the generation goes on."""
        for script in self.alwayson_scripts:
            if getattr(type(script), event) is _ignore:
                continue
            try:
                getattr(script, event)(p, *leading, *p.script_args[script.args_from : script.args_to], **kwargs)
            except Exception:
                errors.report(f"Error running {event}: {script.filename}", exc_info=True)

    def setup_scrips(self, p, *, is_ui=True):
        self._tell("setup", p)

    def component_created(self, when, component, **kwargs):
        by_id = getattr(self, f"on_{when}_component_elem_id")
        for callback, _script in by_id.get(kwargs.get("elem_id"), []):
            callback(OnComponent(component))
        for script in self.scripts:
            getattr(script, f"{when}_component")(component, **kwargs)


def _event_method(event):
    def tell(self, p, *leading, **kwargs):
        self._tell(event, p, *leading, **kwargs)

    return tell


for _event in EVENTS[1:]:
    setattr(ScriptRunner, _event, _event_method(_event))

scripts_txt2img: ScriptRunner = None
scripts_img2img: ScriptRunner = None
scripts_current: ScriptRunner = None
reload_scripts = load_scripts


def _announce_components():
    """Tell scripts and callbacks of every component before and after it is made."""
    made = getattr(gr.components, "IOComponent", gr.components.Component)  # gradio 3, and 4 as in the forks
    make = made.__init__

    def init(self, *args, **kwargs):
        told = {**kwargs, "label": kwargs.get("label"), "elem_id": kwargs.get("elem_id")}
        runner = scripts_current
        script_callbacks.before_component_callback(self, **told)
        if runner is not None:
            runner.component_created("before", self, **told)
        make(self, *args, **kwargs)
        script_callbacks.after_component_callback(self, **told)
        if runner is not None:
            runner.component_created("after", self, **told)

    made.__init__ = init


_announce_components()
