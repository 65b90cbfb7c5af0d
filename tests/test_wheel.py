"""What `pip install` puts into an environment that has never seen this folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import vae_lib

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "vae_lib/data/vae_guard_tiny.safetensors"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes into the folder; by the setuptools that is installed, offline."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "vae_lib", source / "vae_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source))
    (built,) = (source / "dist").glob("*.whl")
    return built


def pip(python: str, command: str, *arguments: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", command, "--no-deps", "--no-index", *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_that_the_package_needs_is_in_it(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    ours = {path for path in (ROOT / "vae_lib").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(ROOT).as_posix() for path in ours}
    assert wheel.name == f"vae_guard-{vae_lib.__version__}-py3-none-any.whl"


def test_it_runs_where_it_was_installed(wheel: Path, tmp_path: Path) -> None:
    """The packages that it needs are those of the tests, found by a line in a file."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    pip(str(scripts / "python"), "install", str(wheel))
    (installed,) = environment.rglob("vae_lib/__init__.py")
    (installed.parents[1] / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    planned = subprocess.run(
        [scripts / "vae-guard", "plan", "--vae", ROOT / BUNDLED, "--width", "512", "--height", "512", "--free", "2GB"],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("decode 512x512")
    asked = "import vae_lib, vae_lib.catalog as c; print(vae_lib.__file__, len(c.FAMILIES), vae_lib.__version__)"
    said = subprocess.run([scripts / "python", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    place, families, version = said.stdout.rsplit(maxsplit=2)
    assert Path(place).resolve() == installed.resolve()
    assert int(families) > 5
    assert version == vae_lib.__version__
