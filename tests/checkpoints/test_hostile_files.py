"""Every file of the corpus, by every way in: one sentence; no code run, no hang, memory bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkpoints import corpus, examine
from vae_lib.errors import InputError
from vae_lib.ui import standalone
from vae_lib.ui.library import Library

if sys.platform != "linux":
    pytest.skip("links, pipes, names of any bytes, and limits on memory: Linux", allow_module_level=True)

ROOT = Path(__file__).parents[2]
SECONDS = 5.0  # of computing, for one file; the slowest takes half a second
MEGABYTES = 100.0


class Record(NamedTuple):
    name: str
    how: str
    said: str
    seconds: float
    megabytes: float


class Run(NamedTuple):
    files: set[str]  # those in the folder itself that are files
    records: list[Record]
    canary: Path


def examined(folder: Path, paths: list[Path], *flags: str) -> list[Record]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.checkpoints.examine", str(folder), *flags],
        cwd=ROOT,
        # One arena: else the C library reserves address space by the number of threads and cores.
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"},
        input=json.dumps([str(path.relative_to(folder)) for path in paths]),
        capture_output=True,
        text=True,
        timeout=600,  # one that never ends is a failure, not a wait
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Record(*record) for record in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, canary = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("canary") / "it ran"
    paths = corpus.write(folder, canary)
    files = {path.name for path in folder.iterdir() if path.is_file() and path.name.isprintable()}
    return Run(files - {"config.json"}, examined(folder, paths), canary)


def assert_sentences(records: list[Record]) -> None:
    odd = [
        record
        for record in records
        if record.said.startswith(examine.CRASH)
        or "cannot be identified (" in record.said  # the table's own net
        or not record.said.isprintable()
        or not record.said.endswith(".")
        or len(record.said) > 700
    ]
    assert not odd


@pytest.mark.slow
def test_each_ends_in_a_sentence_that_can_be_shown(run: Run) -> None:
    by_hand = [record for record in run.records if record.how != "table"]
    assert len(by_hand) > 3 * 120
    assert_sentences(by_hand)


@pytest.mark.slow
def test_all_ways_in_say_the_same(run: Run) -> None:
    said: dict[str, set[str]] = {}
    for record in run.records:
        said.setdefault(record.name, set()).add(record.said.removeprefix("vae_lib: "))
    assert not [sentences for sentences in said.values() if len(sentences) > 1]


@pytest.mark.slow
def test_the_table_lists_them_with_what_is_wrong(run: Run) -> None:
    rows = [record for record in run.records if record.how == "table" and "(bundled)" not in record.name]
    assert_sentences(rows)
    names = {record.name for record in rows}
    assert "link circle.safetensors" not in names  # nothing that could be read
    assert "pipe.ckpt" not in names
    assert not any(name.startswith("up") for name in names)  # a circle is not followed
    assert any(name.endswith("d/deep.safetensors") for name in names)
    assert all(name.isprintable() for name in names)
    assert names >= run.files


@pytest.mark.slow
def test_no_code_ran(run: Run) -> None:
    assert not run.canary.exists()


@pytest.mark.slow
def test_none_takes_long(run: Run) -> None:
    assert not [record for record in run.records if record.seconds > SECONDS]


@pytest.mark.slow
def test_none_takes_much_memory(run: Run) -> None:
    assert not [record for record in run.records if record.megabytes > MEGABYTES]


@pytest.mark.slow
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    paths = corpus.no_permission(tmp_path)
    (tmp_path / "readable.safetensors").write_bytes(b"")
    tmp_path.chmod(0o755)
    try:
        records = examined(tmp_path, paths, "--powerless")
    finally:
        for path in paths:
            path.parent.chmod(0o755)
    assert_sentences([record for record in records if "(bundled)" not in record.name])
    assert all("cannot be read: Permission denied" in record.said for record in records if record.how == "identify")
    rows = {record.name: record.said for record in records if record.how == "table"}
    assert {"secret.safetensors", "readable.safetensors", "listed/in.safetensors"} <= rows.keys()
    assert rows["closed/"] == "The folder closed cannot be looked into: Permission denied."


def test_a_bundled_vae_that_may_not_be_reached(tmp_path: Path, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who may not enter the folder that the package is in."""
    (tmp_path / "mine.safetensors").write_bytes(b"")
    monkeypatch.setattr(standalone, "BUNDLED", closed / "bundled.safetensors")
    rows = Library(standalone.FolderBackend(tmp_path)).rows()
    assert [row.name for row in rows] == ["mine.safetensors", "(bundled) bundled.safetensors"]
    assert rows[1].problem == f"{standalone.BUNDLED} cannot be read: File name too long."


def test_a_folder_of_vaes_that_may_not_be_looked_at(closed: Path) -> None:
    with pytest.raises(InputError, match="cannot be looked at"):
        standalone.FolderBackend(closed)
