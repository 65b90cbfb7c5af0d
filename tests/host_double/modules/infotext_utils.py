"""Infotext (the line of parameters under a picture): quoting, parsing, and pasting into the page's fields."""

import json
import re
import sys

import gradio as gr

from modules import script_callbacks, shared

sys.modules["modules.generation_parameters_copypaste"] = sys.modules[__name__]

re_param = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
paste_fields: dict = {}
send_buttons: dict = {}  # of each tab, and the names of its scripts' fields
infotext_to_setting_name_mapping: list = []


class PasteField(tuple):
    def __new__(cls, component, target, *, api=None):
        return super().__new__(cls, (component, target))

    def __init__(self, component, target, *, api=None):
        self.component, self.api = component, api
        self.label = target if isinstance(target, str) else None
        self.function = target if callable(target) else None


def reset():
    paste_fields.clear()
    send_buttons.clear()


def quote(text):
    return json.dumps(text, ensure_ascii=False) if any(c in str(text) for c in ",\n:") else text


def unquote(text):
    try:
        return json.loads(text) if text.startswith('"') and text.endswith('"') else text
    except ValueError:
        return text


def add_paste_fields(tabname, init_img, fields, override_settings_component=None):
    fields = [field if isinstance(field, PasteField) else PasteField(*field) for field in fields]
    paste_fields[tabname] = {"init_img": init_img, "fields": fields}


def parse_generation_parameters(x: str, skip_fields=None):
    *lines, last = x.strip().split("\n")
    if len(re_param.findall(last)) < 3:
        lines, last = [*lines, last], ""
    text = "\n".join(lines)
    prompt, _, negative = text.partition("\nNegative prompt:")
    res = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for key, value in re_param.findall(last):
        value = unquote(value)
        size = re.fullmatch(r"(\d+)x(\d+)", str(value))
        if size:
            res[f"{key}-1"], res[f"{key}-2"] = size.groups()
        else:
            res[key] = value
    for key in shared.opts.infotext_skip_pasting if skip_fields is None else skip_fields:
        res.pop(key, None)
    return res


def pasted_value(field, params):
    """What pasting puts into a field: None where the infotext says nothing about it."""
    value = field.function(params) if field.function else params.get(field.label)
    if value is None or (isinstance(value, dict) and value.get("__type__") == "generic_update"):
        return value
    if isinstance(field.component.value, bool):
        return value not in ("False", False)
    kind = type(field.component.value)
    try:
        return value if kind is type(None) else kind(value)
    except (TypeError, ValueError):
        return None


def connect_sends():
    """What the buttons "Send to img2img" take along beside the picture."""
    for source, (button, paste_field_names) in send_buttons.items():
        names = ["Prompt", "Negative prompt", "Steps", "Seed", *paste_field_names]
        inputs, outputs = (
            [component for component, target in paste_fields[tabname]["fields"] if target in names]
            for tabname in (source, "img2img")
        )
        button.click(lambda *values: values, inputs, outputs, show_progress=False)


def connect_paste(button, fields, input_comp, override_settings_component, tabname):
    def paste(prompt):
        params = parse_generation_parameters(prompt)
        script_callbacks.infotext_pasted_callback(prompt, params)
        values = [pasted_value(field, params) for field in paste_fields[tabname]["fields"]]
        return [gr.update() if value is None else value for value in values]

    fields = paste_fields[tabname]["fields"]
    button.click(paste, inputs=[input_comp], outputs=[field.component for field in fields], show_progress=False)
