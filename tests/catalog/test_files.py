"""The catalog that is shipped, and what is said of one that is wrong."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.hub.conftest import vae_bytes
from vae_lib.catalog.names import safe_name, target_name
from vae_lib.checkpoints import FAMILIES, identify
from vae_lib.errors import InputError
from vae_lib.hub import CatalogEntry, load_catalog

MSE = "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75"
MSE_CKPT = "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab"

ENTRY = """
[[entry]]
id = "a-vae"
title = "A VAE"
repository = "acme/a-vae"
file = "a.safetensors"
family = "SDXL"
kind = "AutoencoderKL"
licence = "MIT"
purpose = "For tests."
"""


@pytest.mark.parametrize(
    "entry_id",
    [
        "vae-ft-mse-840000-ema-pruned",
        "vae-ft-ema-560000-ema-pruned",
        "sdxl-vae",
        "sdxl-vae-fp16-fix",
        "sd3-vae",
        "kl-f8-anime2",
        "taesd",
        "taesdxl",
        "taesd3",
        "taef1",
        "flux2-vae",
        "qwen-image-vae",
        "wan-2.1-vae",
        "qwen2d-vae",
        "wan-2.2-vae",
        "qwen-image-2.1-vae",
        "taew2-1",
    ],
)
def test_has_what_people_use(entry_id: str) -> None:
    entry = load_catalog().by_id(entry_id)
    assert entry is not None
    assert entry.family in FAMILIES
    assert entry.purpose.endswith(".")


def test_by_id_ignores_case() -> None:
    entry = load_catalog().by_id(" SDXL-VAE ")
    assert entry is not None
    assert entry.id == "sdxl-vae"
    assert load_catalog().by_id("sdxl") is None


def test_by_sha256_finds_every_container_of_the_same_weights() -> None:
    catalog = load_catalog()
    assert (
        catalog.by_sha256(MSE.upper()) is catalog.by_sha256(MSE_CKPT) is catalog.by_id("vae-ft-mse-840000-ema-pruned")
    )
    assert catalog.by_sha256("0" * 64) is None


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.taesd_stem])
def test_each_family_has_its_taesd(family: str) -> None:
    entry = load_catalog().taesd_for(family)
    assert entry is not None
    assert entry.kind == "TAESD"
    # The name of the saved file is the stem of the names that the WebUI looks for.
    assert target_name(entry.repository, entry.file) == f"{FAMILIES[family].taesd_stem}.safetensors"


def test_no_two_entries_are_saved_under_one_name() -> None:
    names = [e.save_as or target_name(e.repository, e.file) for e in load_catalog().entries]
    assert len(set(names)) == len(names)
    assert all(name == safe_name(name) for name in names)


def test_gated_entries_point_to_where_the_licence_is() -> None:
    gated = [entry for entry in load_catalog().entries if entry.gated]
    assert {entry.id for entry in gated} == {"sd3-vae", "flux1-vae"}
    assert all(re.fullmatch(r"https://huggingface\.co/[^/]+/[^/]+", entry.page) for entry in gated)


def test_identify_knows_the_family_from_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(vae_bytes())
    sha256 = hashlib.sha256(vae_bytes()).hexdigest()
    (tmp_path / "catalog.toml").write_text(f'{ENTRY}sha256 = "{sha256}"\n')
    catalog = load_catalog(tmp_path / "catalog.toml")
    identity = identify(tmp_path / "a.safetensors", known=catalog.by_sha256)
    assert (identity.family_name, identity.certainty) == ("SDXL", "hash")
    assert "A VAE" in identity.explanation


def test_reads_a_catalog_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{ENTRY}size = 12\nalso = ["{"a" * 64}"]\n', encoding="utf-8")
    entry = load_catalog(path).by_sha256("a" * 64)
    assert isinstance(entry, CatalogEntry)
    assert (entry.size, entry.sha256, entry.gated, entry.revision) == (12, None, False, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[entry]", "cannot be read"),
        ("entries = []", "entries"),
        ("entry = 3", r"\[\[entry\]\]"),
        (ENTRY.replace('licence = "MIT"\n', ""), "'a-vae'.*licence is missing"),
        (ENTRY.replace('id = "a-vae"\n', ""), "'A VAE'.*id is missing"),
        (ENTRY + 'url = "x"\n', "unknown field 'url'"),
        (ENTRY + 'size = "12"\n', "size must be of type int"),
        (ENTRY + "size = true\n", "size must be of type int"),
        (ENTRY + "size = 0\n", "size must be positive"),
        (ENTRY + 'sha256 = "ABC"\n', "'ABC' is not a SHA-256"),
        (ENTRY + "also = [3]\n", "3 is not a SHA-256"),
        (ENTRY + "pickle = true\n", "pickle must be true exactly"),
        (ENTRY.replace("a.safetensors", "a.ckpt"), "pickle must be true exactly"),
        (ENTRY + 'save_as = "../a.safetensors"\n', "not a plain file name"),
        (ENTRY.replace('"SDXL"', '"SD9"'), "'SD9' is none of SD1, SD2"),
        (ENTRY.replace('"AutoencoderKL"', '"VQ"'), "'VQ' is none of"),
        (ENTRY.replace("acme/a-vae", "a-vae"), "owner/name"),
        (ENTRY.replace('"a-vae"', '"A VAE"', 1), "lower-case"),
        (ENTRY.replace('"For tests."', '" "'), "purpose is empty"),
        (ENTRY * 2, "two entries with the id 'a-vae'"),
        (ENTRY + f'also = ["{"b" * 64}", "{"b" * 64}"]\n', "two entries with the SHA-256 bbb"),
        ('[[known]]\ntitle = "x"\nfamily = "SD1"\nkind = "TAESD"\n', "sha256 is missing"),
    ],
)
def test_a_wrong_catalog_is_refused_with_the_entry_and_the_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"catalog.toml.*{said}"):
        load_catalog(path)


def test_a_missing_catalog_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_catalog(tmp_path / "none.toml")
