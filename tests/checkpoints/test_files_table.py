"""docs/files.md says what the code does."""

from __future__ import annotations

import pytest

from tests.checkpoints import files_table


@pytest.mark.slow
def test_the_documented_table_is_what_becomes_of_the_files() -> None:
    assert files_table.made() == files_table.documented(), "python -m tests.checkpoints.files_table"
