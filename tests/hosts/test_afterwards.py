"""A latents file, which may be anyone's, says nothing but what was noted of a generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hosts import in_double

pytestmark = pytest.mark.slow  # a process that imports gradio


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("afterwards")
    answer: dict[str, Any] = in_double.run(Path(__file__).with_name("run_afterwards.py"), folder, data=folder).answer()
    return answer


def test_whatever_it_says_folders_settings_and_types_stay_the_hosts(found: dict[str, Any]) -> None:
    assert found["problems"] == []


def test_what_is_noted_is_what_is_taken_back(found: dict[str, Any]) -> None:
    assert {"prompts", "seeds", "vae", "is_img2img", "postprocessing", "width", "steps"} <= set(found["noted"])
    refused = {"outpath_samples", "outpath_grids", "override_settings", "refiner_checkpoint", "script_args"}
    assert refused.isdisjoint(found["noted"])


def test_of_neos_masks_in_fp32_all_else_is_noted(found: dict[str, Any]) -> None:
    assert found["precise"] == [[], [], ["The inpainted part's blend by a mask in fp32"]]


def test_an_overlay_is_a_png_and_opened_as_nothing_else(found: dict[str, Any]) -> None:
    assert (found["PNG"], found["others"]) == (1, [])
