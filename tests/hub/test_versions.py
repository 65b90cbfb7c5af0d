"""Downloads with the oldest huggingface_hub that is promised and with the newest, besides the installed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSIONS = ("0.16.4", "2.4.0")
TESTS = ("test_download.py", "test_resolve.py")


@pytest.mark.parametrize("version", VERSIONS)
def test_downloads_with(version: str) -> None:
    folder = _installed(version)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    used = _run("-c", "import huggingface_hub; print(huggingface_hub.__version__)", environment=environment)
    assert used.stdout.strip() == version, used.stderr
    options = ("-q", "-x", "--no-header", "-p", "no:cacheprovider")
    done = _run("-m", "pytest", *options, *(str(HERE / name) for name in TESTS), environment=environment)
    assert done.returncode == 0, done.stdout[-8000:]


def _installed(version: str) -> Path:
    """A folder with that version and what it needs, kept in the environment from one run to the next."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = Path(sys.prefix) / "huggingface_hub" / f"{version}-python{python}"
    if folder.exists():
        return folder
    new = folder.with_name(f"{folder.name}.{os.getpid()}")
    options = ("--no-input", "--disable-pip-version-check", "--quiet", "--target", str(new))
    installed = _run("-m", "pip", "install", *options, f"huggingface_hub=={version}", environment=os.environ)
    if installed.returncode:
        reason = (
            f"huggingface_hub {version} could not be installed; the package index is needed for that once: "
            f"{installed.stderr.strip()[-500:]}"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    new.rename(folder)
    return folder


def _run(*arguments: str, environment: os._Environ[str] | dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=2400,
    )  # fmt: skip
