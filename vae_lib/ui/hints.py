"""What a control does, said when the pointer rests on it."""

from __future__ import annotations

import json
from typing import Any

from vae_lib.ui.versions import with_javascript

# The same as AUTOMATIC1111's javascript/hints.js does.
_SHOW = "() => { for (const [id, text] of %s) { const e = document.getElementById(id); if (e) e.title = text; } }"


def hinted(component: Any, text: str) -> Any:
    """The component with a hint: the WebUI's page shows ``webui_tooltip`` of whatever has an ``elem_id``."""
    assert component.elem_id, f"{component.label}: a hint needs an elem_id"
    component.webui_tooltip = text
    return component


def show_by_ourselves(app: Any) -> None:
    """Show the hints in a page that is not the WebUI's; to be called inside the gr.Blocks ``app``, at its end."""
    hints = [
        (block.elem_id, block.webui_tooltip) for block in app.blocks.values() if getattr(block, "webui_tooltip", None)
    ]
    app.load(None, None, None, **with_javascript(_SHOW % json.dumps(hints)))
