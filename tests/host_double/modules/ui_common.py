import html

import gradio as gr

from modules.ui_components import ToolButton


def plaintext_to_html(text, classname=None):
    content = "<br>\n".join(html.escape(line) for line in text.split("\n"))
    return f"<p class='{classname}'>{content}</p>" if classname else f"<p>{content}</p>"


def create_refresh_button(refresh_component, refresh_method, refreshed_args, elem_id):
    components = refresh_component if isinstance(refresh_component, list) else [refresh_component]

    def refresh():
        refresh_method()
        arguments = refreshed_args() if callable(refreshed_args) else refreshed_args
        return [gr.update(**(arguments or {})) for _ in components]

    button = ToolButton(value="\U0001f504", elem_id=elem_id)
    button.click(refresh, inputs=[], outputs=components)
    return button
