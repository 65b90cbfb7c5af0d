"""What users read, collected from the code that says it: plain English, whole sentences, and no Python.

Errors and notices are read off the syntax tree, wherever they are raised; captions and hints off the page as it is
built; help off the command line's parser; events off the table of ``tests/decode/test_wording.py``.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.decode.test_wording import TABLE
from vae_lib.cli.parser import build_parser
from vae_lib.errors import InputError
from vae_lib.guard import request, settings
from vae_lib.guard.notices import _signed

ROOT = Path(__file__).resolve().parents[1] / "vae_lib"
GAP = "\N{OBJECT REPLACEMENT CHARACTER}"  # where a sentence has a value of its own
RULE = re.compile(r"\b(told|tried|tries|anew|ways?|once more|look again|for want of|all the same)\b", re.IGNORECASE)
PYTHON = re.compile(r"(?<!\()\b(True|False|None|NoneType)\b")  # behind a bracket it is what a program is to call
ERRORS = {"VAEGuardError"}  # and all that is derived from it, below


def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def _texts(node: ast.expr) -> list[str]:
    """What an expression may say; ``GAP`` for what only a run can know."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(words) for words in itertools.product(*map(_texts, parts))]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [one + other for one, other in itertools.product(_texts(left), _texts(right))]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body), *_texts(orelse)]
        case ast.FormattedValue(value=ast.IfExp() as choice):
            return _texts(choice)
    return [GAP]


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _said() -> Iterator[tuple[str, str, str]]:
    """Place, by whom, and text of all errors, notes and notices."""
    trees = _trees()
    for _ in range(3):  # errors derived from errors
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") in ERRORS for base in node.bases):
                    ERRORS.add(node.name)
    place = {"note": 0, "tell": 0, "tell_once": 1, **dict.fromkeys(ERRORS, 0)}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > place.get(_name(node), len(node.args)):
                for text in _texts(node.args[place[_name(node)]]):
                    if text.strip(GAP):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", _name(node), text


SAID = list(_said())


def _wrong(text: str) -> list[str]:
    return [found[0] for rule in (RULE, PYTHON) if (found := rule.search(text))]


def _begins_small(text: str) -> bool:
    return text.lstrip()[:1].islower()


def test_errors_notes_and_notices_are_sentences() -> None:
    assert len(SAID) > 300
    bad = [(place, text) for place, _, text in SAID if _wrong(text) or text[-1] not in f".?!…:{GAP}"]
    # what is signed begins with our name, and why a call is left to others is the end of a sentence
    inside = ("tell", "tell_once", "Aside")
    bad += [(place, text) for place, by, text in SAID if by not in inside and _begins_small(text)]
    assert bad == []


def test_captions_begin_large_and_are_english() -> None:
    found = []
    for path, tree in _trees().items():
        if path.parent.name not in ("ui", "webui"):
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = [keyword.value for keyword in call.keywords if keyword.arg in ("label", "placeholder")]
            given += call.args[:1] if _name(call) in ("Button", "TabItem", "chip") else []
            given += call.args[1:2] if _name(call) in ("hinted", "_shown") else []
            found += [(path.name, _name(call), text) for node in given for text in _texts(node)]
    assert len(found) > 60
    assert [one for one in found if _wrong(one[2]) or (_begins_small(one[2]) and one[1] != "chip")] == []


def test_the_page_by_itself_is_english(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from vae_lib.ui.app import build_app
    from vae_lib.ui.standalone import FolderBackend

    said: set[str] = set()
    for block in build_app(FolderBackend(tmp_path)).blocks.values():
        for name in ("label", "info", "placeholder", "value", "webui_tooltip"):
            text = getattr(block, name, None)
            if isinstance(text, str) and "<style>" not in text:
                said.update(filter(None, (part.strip() for part in re.split("<.*?>", text))))
    captions = said - {"decode", "fp32"}  # choices that are names
    assert len(captions) > 80
    assert [text for text in sorted(captions) if _wrong(text)] == []
    hints = {getattr(block, "webui_tooltip", None) for block in build_app(FolderBackend(tmp_path)).blocks.values()}
    assert [text for text in hints if text and _begins_small(text)] == []


def _helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from filter(None, (parser.description, parser.epilog))
    for action in parser._actions:
        yield from [action.help] if action.help else []
        if isinstance(action, argparse._SubParsersAction):
            yield from (choice.help or "" for choice in action._choices_actions)
            for other in action.choices.values():
                yield from _helps(other)


def test_the_command_lines_help_is_english() -> None:
    said = list(_helps(build_parser()))
    assert len(said) > 60
    assert [text for text in said if _wrong(text)] == []


def test_what_happened_is_said_in_english() -> None:
    for _, entry, notice in TABLE:
        assert _wrong(entry) == _wrong(notice) == []
        assert _signed(notice).startswith("VAE Guard: ")
        assert notice.endswith(".")


@pytest.mark.parametrize("value", [True, None, [], [True], {}, {"a": None}, "x", -7, 1e99, float("nan")], ids=repr)
def test_odd_values_are_named_as_they_were_written(value: Any) -> None:
    said: list[str] = []
    for option in settings.OPTIONS.values():
        settings.read({option.key: value}, lambda key, text: said.append(text))
    for name in request.NAMES:
        try:
            request.from_mapping({name: value})
        except InputError as error:
            said.append(str(error))
    assert len(said) > 5
    assert [text for text in said if _wrong(text) or text[-1] != "."] == []
