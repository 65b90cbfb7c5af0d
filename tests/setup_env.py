"""Make `.venv` ready for `make demo` or `make test`, and do nothing at all when it already is.

    python tests/setup_env.py demo|test

Needs only a Python with `venv`; run it with the interpreter that `.venv` shall use. What was installed is
written down in `.venv/vae-guard-setup.json` as a hash over the requirements, this file and the settings
below, so a change of any of them rebuilds the environment and nothing else does.

PyTorch is installed first and apart from the rest, because which build is right depends on the machine:

    TORCH_SPEC       what to install (default: torch==2.13.0)
    PIP_TORCH_ARGS   more arguments for that one `pip install`. On Linux, PyPI's torch brings gigabytes of
                     CUDA libraries; `--index-url https://download.pytorch.org/whl/cpu` takes the CPU build.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "vae-guard-setup.json"
TORCH_SPEC = os.environ.get("TORCH_SPEC") or "torch==2.13.0"
TORCH_ARGS = shlex.split(os.environ.get("PIP_TORCH_ARGS", ""))
REQUIREMENTS = {"demo": ROOT / "tests/requirements-demo.txt", "test": ROOT / "tests/requirements.txt"}
GRADIO_4 = {"test": ROOT / "tests/requirements-gradio4.txt"}  # for the forks' page, beside the rest


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(purpose: str) -> str:
    """Hash of everything that decides what `.venv` holds."""
    digest = hashlib.sha256()
    for file in (Path(__file__), REQUIREMENTS[purpose], GRADIO_4.get(purpose)):
        if file is not None:
            digest.update(file.read_bytes())
    digest.update(repr((sys.version_info[:2], TORCH_SPEC, TORCH_ARGS)).encode())
    return digest.hexdigest()


def is_ready(purpose: str) -> bool:
    """Whether `.venv` was set up for this purpose (an environment for the tests serves the demo too)."""
    try:
        done = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    if not venv_python().exists():
        return False
    purposes = ("demo", "test") if purpose == "demo" else ("test",)
    return any(done.get(name) == fingerprint(name) for name in purposes)


def pip_install(*arguments: str) -> None:
    command = [
        str(venv_python()), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet",
    ]  # fmt: skip
    subprocess.run([*command, *arguments], check=True, stdin=subprocess.DEVNULL)


def set_up(purpose: str) -> None:
    print(f"Setting up .venv with Python {sys.version.split()[0]} ({purpose}); this takes a few minutes once.")
    if VENV.exists():
        shutil.rmtree(VENV)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, stdin=subprocess.DEVNULL)
    # One resolution for both: a requirement that torch also has (numpy, filelock, ...) gets one version.
    # The extra index is asked for torch alone, so that nothing else can come from there.
    pip_install(*TORCH_ARGS, TORCH_SPEC)
    pip_install(TORCH_SPEC, "-r", str(REQUIREMENTS[purpose]))
    if purpose in GRADIO_4:
        pip_install("--no-deps", "--target", str(VENV / "gradio4"), "-r", str(GRADIO_4[purpose]))
    STAMP.write_text(json.dumps({purpose: fingerprint(purpose)}) + "\n")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in REQUIREMENTS:
        print(__doc__, file=sys.stderr)
        return 2
    purpose = arguments[0]
    if is_ready(purpose):
        return 0
    if purpose == "test" and sys.version_info[:2] not in ((3, 10), (3, 11)):
        print(
            "The tests run against the WebUI's own versions of gradio and numpy, which need Python 3.10 or "
            f"3.11; this is {sys.version.split()[0]}. Install one of those, or name it: "
            "make test PYTHON=/path/to/python3.11",
            file=sys.stderr,
        )
        return 1
    try:
        set_up(purpose)
    except subprocess.CalledProcessError as error:
        print(
            f"Setting up .venv failed: {shlex.join(map(str, error.cmd))} ended with {error.returncode}; its "
            "own message is above. Nothing outside .venv was touched; run make again to retry.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
