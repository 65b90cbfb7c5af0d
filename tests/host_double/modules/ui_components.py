from functools import wraps

import gradio as gr

if hasattr(gr, "component_meta"):  # gradio 4 writes a file of stubs beside ours
    gr.component_meta.create_or_modify_pyi = lambda *args: None

_get_config = gr.blocks.Block.get_config


def get_config(self):
    """With the hint, which the page's script shows."""
    config = _get_config(self)
    if getattr(self, "webui_tooltip", None):
        config["webui_tooltip"] = self.webui_tooltip
    return config


gr.blocks.Block.get_config = get_config


class FormComponent:
    def get_expected_parent(self):
        return gr.components.Form


def _form(base, block_name):
    class Component(FormComponent, base):
        def get_block_name(self):
            return block_name

    return Component


FormRow, FormColumn = _form(gr.Row, "row"), _form(gr.Column, "column")
FormGroup, FormHTML = _form(gr.Group, "group"), _form(gr.HTML, "html")


class ToolButton(FormComponent, gr.Button):
    """A small button with one symbol."""

    @wraps(gr.Button.__init__)  # gradio 4 tells the page what this takes
    def __init__(self, *args, **kwargs):
        super().__init__(*args, elem_classes=["tool", *kwargs.pop("elem_classes", [])], **kwargs)

    def get_block_name(self):
        return "button"


class DropdownMulti(FormComponent, gr.Dropdown):
    @wraps(gr.Dropdown.__init__)  # gradio 4 tells the page what this takes
    def __init__(self, **kwargs):
        super().__init__(multiselect=True, **kwargs)

    def get_block_name(self):
        return "dropdown"


class DropdownEditable(FormComponent, gr.Dropdown):
    @wraps(gr.Dropdown.__init__)  # gradio 4 tells the page what this takes
    def __init__(self, **kwargs):
        super().__init__(allow_custom_value=True, **kwargs)

    def get_block_name(self):
        return "dropdown"


class InputAccordion(gr.Checkbox):
    """An accordion whose state is an input: a hidden checkbox beside it, kept in step by the page."""

    count = 0

    def __init__(self, value, **kwargs):
        InputAccordion.count += 1
        self.accordion_id = kwargs.get("elem_id") or f"input-accordion-{InputAccordion.count}"
        super().__init__(value, **{**kwargs, "elem_id": f"{self.accordion_id}-checkbox", "visible": False})
        self.accordion = gr.Accordion(
            label=kwargs.get("label", "Accordion"),
            elem_id=self.accordion_id,
            elem_classes=["input-accordion"],
            open=value,
        )

    def extra(self):
        return gr.Column(elem_id=f"{self.accordion_id}-extra", elem_classes="input-accordion-extra", min_width=0)

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, *raised):
        self.accordion.__exit__(*raised)

    def get_block_name(self):
        return "checkbox"
