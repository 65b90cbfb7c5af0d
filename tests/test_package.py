"""The package as a whole: its version, and that its metadata and the requirements files agree."""

from __future__ import annotations

import re
from pathlib import Path

import vae_lib
from vae_lib import errors

ROOT = Path(__file__).resolve().parent.parent


def requirement_lines(text: str) -> set[str]:
    """Requirements, without comments, spaces and the kind of quotes."""
    lines = (line.split("#")[0].replace("'", '"').replace(" ", "") for line in text.splitlines())
    return {line for line in lines if line}


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vae_lib.__version__)


def test_demo_installs_exactly_the_runtime_dependencies() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    declared = {re.sub(r'^\s*"|",$', "", line).replace("'", '"').replace(" ", "") for line in block[1].splitlines()}
    demo = requirement_lines((ROOT / "tests/requirements-demo.txt").read_text(encoding="utf-8"))
    assert demo == {line for line in declared if not line.startswith("torch>")}


def test_every_test_requirement_is_pinned() -> None:
    lines = requirement_lines((ROOT / "tests/requirements.txt").read_text(encoding="utf-8"))
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^;]+(;.*)?", line) for line in lines)


def test_expected_failures_share_one_base() -> None:
    """The command line and the WebUI catch this base alone and show its sentence."""
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(kinds) > 1
    assert all(issubclass(kind, errors.VAEGuardError) for kind in kinds)
