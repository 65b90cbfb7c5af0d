"""What users type, and what the error says when it is nothing that we can fetch."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vae_lib.errors import DownloadError
from vae_lib.hub import load_catalog
from vae_lib.hub.reference import Reference, parse_reference

HUB = "https://huggingface.co"
MIRROR = "https://mirror.example:8443/hub"


def parse(text: str, endpoint: str = HUB) -> Reference:
    return parse_reference(text, load_catalog(), endpoint)


@pytest.mark.parametrize(
    ("text", "repo_id", "path", "revision"),
    [
        ("acme/vae", "acme/vae", None, None),
        (" acme/vae/ ", "acme/vae", None, None),
        ("acme/vae/a.pt?token=hf_secret", "acme/vae", "a.pt", None),
        ("huggingface.co/acme/vae/resolve/main/a.pt?token=hf_secret", "acme/vae", "a.pt", "main"),
        ("acme/vae@v2", "acme/vae", None, "v2"),
        ("acme/vae/a.safetensors", "acme/vae", "a.safetensors", None),
        ("acme/vae@v2/sub/a.pt", "acme/vae", "sub/a.pt", "v2"),
        ("hf://acme/vae@v2/a.pt", "acme/vae", "a.pt", "v2"),
        (f"{HUB}/acme/vae", "acme/vae", None, None),
        (f"{HUB}/acme/vae/resolve/main/a.pt?download=true", "acme/vae", "a.pt", "main"),
        (f"{HUB}/acme/vae/blob/abc123/sub/a.pt", "acme/vae", "sub/a.pt", "abc123"),
        (f"{HUB}/acme/vae/raw/main/a.pt#L1", "acme/vae", "a.pt", "main"),
        (f"{HUB}/acme/vae/tree/main", "acme/vae", None, "main"),
        (f"{HUB}/acme/vae/tree/main/vae", "acme/vae", "vae", "main"),
        (f"{HUB}/acme/vae/blob/refs%2Fpr%2F3/a.pt", "acme/vae", "a.pt", "refs/pr/3"),
        (f"{HUB}/acme/vae/blob/refs/pr/3/a.pt", "acme/vae", "a.pt", "refs/pr/3"),
        (f"{HUB}/acme/vae/blob/main/my%20vae%20%C3%A4.pt", "acme/vae", "my vae ä.pt", "main"),
        ("http://hf.co/acme/vae", "acme/vae", None, None),
        ("https://hf-mirror.com/acme/vae/resolve/main/a.pt", "acme/vae", "a.pt", "main"),
    ],
)
def test_forms(text: str, repo_id: str, path: str | None, revision: str | None) -> None:
    assert parse(text) == Reference(repo_id, path, revision)


def test_the_host_and_the_folder_of_a_mirror_are_known() -> None:
    url = f"{MIRROR}/acme/vae/resolve/main/a.pt"
    assert parse(url, MIRROR) == Reference("acme/vae", "a.pt", "main")
    with pytest.raises(DownloadError, match=r"mirror\.example is not the Hugging Face hub"):
        parse(url)


def test_catalog_ids_come_with_their_entry() -> None:
    found = parse("SDXL-VAE-fp16-fix")
    assert found.entry is load_catalog().by_id("sdxl-vae-fp16-fix")
    assert (found.repo_id, found.path) == ("madebyollin/sdxl-vae-fp16-fix", "sdxl_vae.safetensors")
    assert found.revision == found.entry.revision


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Name a file"),
        ("sdxl-va", "did you mean sdxl-vae"),
        ("whatever", "'owner/name'"),
        ("https://civitai.com/api/download/models/1", "civitai.com is not the Hugging Face hub"),
        (f"{HUB}/datasets/acme/vae/resolve/main/a.pt", "not a model repository"),
        (f"{HUB}/acme", "does not name a repository"),
        (f"{HUB}/acme/vae/discussions/3", "neither a file nor a folder"),
        ("acme/vae/../../x/a.pt", "not a path inside"),
        ("acme/vae//a.pt", "not a path inside"),
        (f"{HUB}/acme/vae/resolve/main/%2e%2e/%2e%2e/a.pt", "not a path inside"),
        (f"{HUB}/acme/vae/resolve/main/..%2f..%2fa.pt", "not a path inside"),
        ("../etc/passwd", "not the name of a repository"),
        ("a b/c", "not the name of a repository"),
        ("acme/vae@../x", "not a path inside|not a revision"),
        ("acme/va--e", "not the name of a repository"),
        ("C:\\models\\vae.pt", "not in the catalog"),
        ("nope/", "'nope' is not in the catalog"),
        ("/", "Name a file"),
        ("?token=hf_secret", "Name a file"),
        ("hf://", "not in the catalog"),
        ("https://]", "not an address"),
        ("https://[::1/acme/vae", "not an address"),
        ("acme/va\ud800e", "characters that no name has"),
        ("acme/vae/a\ud800.pt", "characters that no name has"),
        ("acme/vae/a\x1b[31m.pt", "characters that no name has"),
        (f"{HUB}/acme/vae/resolve/main/a%00.pt", "not a path inside"),
    ],
)
def test_everything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(DownloadError, match=said):
        parse(text)


_PIECES = st.sampled_from(
    [HUB, "https://", "hf://", "/", "acme", "vae", "@", "resolve", "main", "refs", "?token=hf_secret", "#", "[", "]",
     "%00", "%2F", "..", ".pt", " ", "\n", "\x1b", "\ud800", "\u202e", ":"]
)  # fmt: skip


@given(st.text() | st.lists(_PIECES, max_size=12).map("".join))
@example("nope/")
@example("acme/vae/a\ud800?token=hf_secret")
def test_whatever_is_typed_is_a_short_form_or_one_sentence(text: str) -> None:
    said = ""
    with contextlib.suppress(DownloadError):
        found = parse(text)
        said = str(found)
        again = parse(said)  # what a job keeps means the same
        assert (found.repo_id, found.path) in [(one.repo_id, one.path) for one in again.readings()]
    assert "hf_secret" not in said
    said.encode()
