"""The tab by itself, on what is installed, and behind a proxy."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_lib.cli import commands
from vae_lib.errors import InputError
from vae_lib.ui import needs

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = argparse.Namespace(folder=None, port=None, no_browser=True)
PROGRAM = """
import os, pathlib, sys, urllib.request
from vae_lib.ui.app import launch
app = launch(pathlib.Path(sys.argv[1]), open_browser=False, block=False)
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(direct.open(app.local_url).status, os.environ["no_proxy"], os.environ["NO_PROXY"], flush=True)
os._exit(0)
"""


def extra(name: str) -> list[str]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["optional-dependencies"][name]
    return found


def test_the_sentence_and_the_extra_name_the_same_versions() -> None:
    assert extra("ui") == list(needs.PACKAGES)
    for name in ("ui", "ui-gradio3"):
        assert all("==" in package for package in extra(name))  # what is open breaks sooner or later


def test_the_extras_are_of_the_versions_that_are_tested_here() -> None:
    for name, file in (("ui", "requirements-gradio4.txt"), ("ui-gradio3", "requirements.txt")):
        tested = (ROOT / "tests" / file).read_text(encoding="utf-8").splitlines()
        tested += (ROOT / "tests/requirements.txt").read_text(encoding="utf-8").splitlines()
        assert set(extra(name)) <= set(tested)


def failing(error: Exception) -> Callable[..., object]:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "vae_lib.ui.app":
                raise error

    return Finder


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'nowhere.inside'", name="nowhere.inside"),
            "the package nowhere, which",
        ),
        (
            ModuleNotFoundError("No module named 'pydantic.v9'", name="pydantic.v9"),
            "No module named 'pydantic.v9')",
        ),
        (
            ImportError("cannot import name 'HfFolder'", name="huggingface_hub"),
            "cannot import name 'HfFolder')",
        ),
        (TypeError("a field\nand where it is"), "cannot be loaded (TypeError: a field)"),
    ],
    ids=["missing", "a part is missing", "too new", "another error"],
)
def test_what_cannot_be_imported_is_said(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vae_lib.ui.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [failing(error)(), *sys.meta_path])
    with pytest.raises(InputError) as raised:
        commands.run_ui(OPTIONS)
    assert said in str(raised.value)
    assert str(raised.value).endswith(f"pip install {' '.join(needs.PACKAGES)}.")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"gradio": "6.1.0", "starlette": "1.10.0"}, "gradio 3.41 and 4.40, and 6.1.0 is installed"),
        (
            {"gradio": "4.40.0", "starlette": "1.10.0"},
            "gradio 4.40.0 does not work with the installed starlette 1.10.0",
        ),
    ],
)
def test_versions_that_do_not_fit_are_refused_before_gradio_begins(
    versions: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "_version", versions.get)
    with pytest.raises(InputError, match=said):
        commands.run_ui(OPTIONS)


@pytest.mark.slow
def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    nobody = "http://127.0.0.1:9"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= dict.fromkeys(names, nobody) | {"NO_PROXY": "example.org"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    direct = "example.org,localhost,127.0.0.1"
    assert done.stdout.splitlines()[-1:] == [f"200 {direct} {direct}"], done.stderr


@pytest.mark.parametrize("known", ["*", "localhost, 127.0.0.1"])
def test_what_reaches_this_machine_already_is_left(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", known)
    monkeypatch.delenv("no_proxy", raising=False)
    assert needs.environment()["no_proxy"] == known.replace(" ", "")
