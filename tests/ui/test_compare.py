"""Compare's latents: as each VAE and TAESD takes them, or a problem in its row that names the choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.networks.small import SD_SHAPED, network, taesd, weights_of
from vae_lib.catalog import FAMILIES, LatentSpace
from vae_lib.ui.backend import VAEFile
from vae_lib.ui.compare import AUTO, Cell, Comparer, Source
from vae_lib.ui.standalone import FolderBackend

Z = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(3))
OWN, SDXL = LatentSpace(1.0), LatentSpace.of(FAMILIES["SDXL"], {})


@pytest.fixture
def comparer(tmp_path: Path) -> Comparer:
    vae = weights_of(network(SD_SHAPED))
    save_file(vae, tmp_path / "sdxl.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    save_file(vae, tmp_path / "sd1.safetensors", {"modelspec.architecture": "stable-diffusion-v1"})
    save_file(vae, tmp_path / "myvae.safetensors")
    for name in ("taesd", "taesdxl"):
        save_file(weights_of(taesd()), tmp_path / f"{name}.safetensors")
    return Comparer(FolderBackend(tmp_path))


def compared(comparer: Comparer, folder: Path, name: str, source: Source) -> Cell:
    run = comparer.start(source, [VAEFile(name, folder / f"{name}.safetensors")], [AUTO])
    assert run.finished.wait(60)
    (cell,) = run.cells
    return cell


def unit(picture: torch.Tensor) -> torch.Tensor:
    return ((picture[0] + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize(("space", "latents"), [(OWN, Z), (SDXL, Z * 0.13025)])
def test_each_is_given_its_own_scale(
    space: LatentSpace, latents: torch.Tensor, comparer: Comparer, tmp_path: Path
) -> None:
    source = Source(latents=latents, space=space)
    for name, wanted in (("sdxl", network(SD_SHAPED).decode(Z)), ("taesdxl", taesd().decode(Z * 0.13025))):
        cell = compared(comparer, tmp_path, name, source)
        assert cell.problem == ""
        assert cell.picture is not None
        torch.testing.assert_close(cell.picture, unit(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sd1", "taesd"])
def test_another_family_is_a_problem_with_a_choice(name: str, comparer: Comparer, tmp_path: Path) -> None:
    cell = compared(comparer, tmp_path, name, Source(latents=Z, space=SDXL))
    assert cell.picture is None
    assert cell.problem.startswith(f"The latents are SDXL's and {name}.safetensors is the ")
    assert "choose it in 'Whose latents': SDXL or SD1" in cell.problem


def test_where_nothing_tells_the_choice_settles_it(comparer: Comparer, tmp_path: Path) -> None:
    cell = compared(comparer, tmp_path, "myvae", Source(latents=Z))
    assert cell.problem.endswith("choose it in 'Whose latents': SD1, SD2 or SDXL.")
    cell = compared(comparer, tmp_path, "myvae", Source(latents=Z, family=FAMILIES["SDXL"]))
    assert cell.picture is not None
    torch.testing.assert_close(cell.picture, unit(network(SD_SHAPED).decode(Z / 0.13025)), atol=1e-4, rtol=0)
