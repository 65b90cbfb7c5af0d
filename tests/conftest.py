"""Settings that every test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# The user's own settings are for the user's own runs.
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
os.environ.pop("VAE_GUARD_OVERLAP", None)

# Before torch is imported: tiny tensors are fastest on one thread, and threads that wait for each other spin.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# The same plans on every machine, and nothing written to the user's cache.
os.environ["VAE_GUARD_CALIBRATE"] = "0"

import pytest
from hypothesis import HealthCheck, settings

# Decoding on a busy CI core takes as long as it takes; a deadline would only make tests flaky. Derandomised,
# so that a red run can be repeated; `--hypothesis-profile=explore` looks further afield.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """What was there before stays: `gc.collect`, which the code calls, need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that may not be looked at, by nobody: root may enter any, but for one whose name is too long."""
    return tmp_path / ("n" * 300)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random weights and inputs are the same in every run, whatever the order of the tests."""
    import torch  # here, for the process that only hands out tests to others needs none

    torch.manual_seed(0)
