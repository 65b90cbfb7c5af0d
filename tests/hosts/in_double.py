"""A program in a process of its own, whose ``modules`` are the host double's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests" / "host_double"


@dataclass(frozen=True)
class Said:
    """What a program wrote before it ended well."""

    output: str
    errors: str

    def answer(self) -> Any:
        """The JSON of its last line."""
        return json.loads(self.output.splitlines()[-1])


def run(*arguments: str | Path, data: Path, first: tuple[Path, ...] = (), last: tuple[Path, ...] = ()) -> Said:
    """Run Python with ``arguments`` in ``data``, the WebUI's folder; ``first`` and ``last`` are looked at for imports.

    Raises:
        AssertionError: when it did not end well, with what it said.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*first, DOUBLE, ROOT, *last))),
        "HOST_DOUBLE_DATA": str(data),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment, cwd=data, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Said(done.stdout, done.stderr)
