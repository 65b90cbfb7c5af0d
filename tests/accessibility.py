"""What axe-core finds wrong in a part of a page, but for what is gradio's or the host's own."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# Rule, elements, and whose they are.
NOT_OURS = (
    ("color-contrast", "button.primary", "the theme's two colours, which the host chooses"),
    ("button-name", ".upload-container > button", "gradio 4's, without a word in it, around the field for a file"),
    ("button-name", "#vg_difference button", "gradio 4's, around the picture of a gr.Image"),
    ("image-alt", "#vg_picture img, #vg_difference img", "gradio 4's gr.Image has no text for its picture"),
)


def violations(page: Page, root: str) -> list[str]:
    """Serious and critical ones below an element: rule, element, what is wrong."""
    found = Axe().run(page, root, {"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
        if not _is_not_ours(page, rule["id"], node["target"][-1])
    ]


def _is_not_ours(page: Page, rule: str, element: str) -> bool:
    selectors = [selector for name, selector, _ in NOT_OURS if name == rule]
    return any(page.locator(element).first.evaluate("(e, s) => e.matches(s)", selector) for selector in selectors)
