"""A gradio page in a browser: where versions 3 and 4 differ, and what is done to both alike."""

from __future__ import annotations

import re
from pathlib import PurePath

from playwright.sync_api import Locator, Page


def tab_button(page: Page, name: str, tabs: str = "#tabs") -> Locator:
    """Of the tab that is named so, in capitals or not; to gradio 4 it is no button any more, but a tab."""
    exactly = re.compile(rf"^\s*{re.escape(name)}\s*$", re.IGNORECASE)
    return page.locator(f"{tabs} > .tab-nav button", has_text=exactly).first


def open_tab(page: Page, name: str, tabs: str = "#tabs") -> None:
    tab_button(page, name, tabs).click()


def options(page: Page, dropdown: str) -> Locator:
    """What can be chosen in a dropdown, once it is open."""
    return page.locator(f"{dropdown} [data-testid=dropdown-option]")


def choose(page: Page, dropdown: str, value: str) -> None:
    """One of a dropdown's options."""
    page.locator(f"{dropdown} input").first.click()
    options(page, dropdown).and_(page.locator(f'[aria-label="{value}"]')).click()


def html(page: Page, block: str) -> Locator:
    """What a block of HTML shows; in gradio 3 its inside has the block's id as well."""
    return page.locator(f"{block} .prose")


def remove_image(page: Page, image: str) -> Locator:
    """The button that empties an image."""
    return page.locator(f"{image} button:is([aria-label=Clear], [aria-label='Remove Image'])")


def uploaded(page: Page, block: str, name: str) -> Locator:
    """The row of a file that has arrived: on its way its name is shown, too, but it cannot be downloaded yet.

    gradio 4 shows a file's name and its ending apart, with a space between them in the page's text.
    """
    path = PurePath(name)
    shown = re.compile(rf"^\s*{re.escape(path.stem)}\s*{re.escape(path.suffix)}\b")
    return page.locator(f"{block} .file-preview tr", has_text=shown).filter(has=page.locator(".download a"))
