"""The host's XYZ plot as extensions know it: a loaded script module with a list named `axis_options`."""

from copy import copy

import gradio as gr
from modules import processing, scripts


def apply_field(field):
    def fun(p, x, xs):
        setattr(p, field, x)

    return fun


def format_value_add_label(p, opt, x):
    return f"{opt.label}: {x}"


def format_value(p, opt, x):
    return x


class AxisOption:
    def __init__(self, label, type, apply, format_value=format_value_add_label, confirm=None, cost=0.0,
                 choices=None, prepare=None):  # fmt: skip
        self.label, self.type, self.apply, self.format_value = label, type, apply, format_value
        self.confirm, self.cost, self.choices, self.prepare = confirm, cost, choices, prepare


class AxisOptionImg2Img(AxisOption):
    is_img2img = True


class AxisOptionTxt2Img(AxisOption):
    is_img2img = False


axis_options = [
    AxisOption("Nothing", str, lambda p, x, xs: None, format_value=lambda p, opt, x: ""),
    AxisOption("Seed", int, apply_field("seed")),
    AxisOption("Steps", int, apply_field("steps")),
]


class Script(scripts.Script):
    def title(self):
        return "X/Y/Z plot"

    def ui(self, is_img2img):
        self.current_axis_options = [
            option for option in axis_options if getattr(option, "is_img2img", is_img2img) == is_img2img
        ]
        labels = [option.label for option in self.current_axis_options]
        axis = gr.Dropdown(labels, value="Seed", type="index", label="X type", elem_id=self.elem_id("x_type"))
        return [axis, gr.Textbox(label="X values", elem_id=self.elem_id("x_values"))]

    def run(self, p, x_type, x_values):
        """One row: the chosen axis over its values, separated by commas."""
        option = self.current_axis_options[x_type]
        values = [option.type(value.strip()) for value in x_values.split(",")]
        if option.confirm:
            option.confirm(p, values)
        processing.fix_seed(p)
        results = []
        for value in values:
            one = copy(p)
            one.extra_generation_params = dict(p.extra_generation_params)
            option.apply(one, value, values)
            results.append(processing.process_images(one))
        first = results[0]
        first.images = [image for result in results for image in result.images]
        first.infotexts = [text for result in results for text in result.infotexts]
        return first
