"""The README is short, what the documents link is there, and no picture is of an older page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
_LINK = re.compile(r'\]\(([^)#\s]+)|(?:src|srcset)="([^"]+)"')


def links(page: Path) -> list[Path]:
    """Files of ours that a page links or shows."""
    found = (one or other for one, other in _LINK.findall(page.read_text(encoding="utf-8")))
    return [(page.parent / link).resolve() for link in found if "://" not in link]


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_linked_is_there(page: Path) -> None:
    missing = [link for link in links(page) if not link.exists()]
    assert not missing


def test_every_document_and_picture_is_linked_and_every_picture_made_by_a_script() -> None:
    linked = {link for page in PAGES for link in links(page)}
    for file in (*DOCS.glob("*.md"), *DOCS.glob("*.png")):
        assert file in linked, file.name
    scripts = (
        ROOT / "tools" / "screenshots.py",
        ROOT / "tools" / "webui_screenshot.py",
        ROOT / "tools" / "shots.py",
        ROOT / "benchmarks" / "picture.py",
        ROOT / "benchmarks" / "qwen_image.py",
        ROOT / "tests" / "webui" / "test_decode_again.py",
    )
    made = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for picture in DOCS.glob("*.png"):
        assert picture.stem.removesuffix("-light").removesuffix("-dark") in made, picture.name


def test_the_words_in_the_pictures_are_those_of_the_page() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "vae_lib/ui").glob("*.py"))
    for name, words in runpy.run_path(str(ROOT / "tools" / "screenshots.py"))["SHOWN"].items():
        assert (DOCS / f"{name}.png").exists()
        for word in words:
            assert f'"{word}"' in sources or f"'{word}'" in sources, f"{name}: take it anew, {word!r} is gone"


def test_the_settings_page_is_described_as_it_is() -> None:
    from vae_lib.guard.settings import OPTIONS

    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    for option in OPTIONS.values():
        assert f"`{option.key}`" in text
