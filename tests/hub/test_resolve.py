"""Which file a reference means, and what the hub's refusals become. The client is the real one."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.conftest import vae_bytes
from tests.hub.hub_server import HubServer, git_sha1
from vae_lib.errors import Cancelled, DownloadError
from vae_lib.hub import (
    AmbiguousReference,
    Catalog,
    CatalogEntry,
    GatedRepository,
    Hub,
    PickleRefused,
    RemoteFile,
    client,
    resolve,
)

ROOT = Path(__file__).resolve().parents[2]


def found(hub: HubServer, reference: str, **options: object) -> RemoteFile:
    asking = {name: options.pop(name) for name in ("token", "cancelled") if name in options}
    return resolve(reference, Hub(hub.endpoint, **asking), **options)  # type: ignore[arg-type]


def put(hub: HubServer, *names: str) -> None:
    """A repository acme/x with these files, each of its own content."""
    hub.add("acme/x", {name: name.encode() for name in names})


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["README.md", "a.safetensors"], "a.safetensors"),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"], None),
        (["v1-5.safetensors", "vae/diffusion_pytorch_model.safetensors"], None),
        (["sdxl_vae.safetensors", "diffusion_pytorch_model.safetensors"], "sdxl_vae.safetensors"),
        (
            [
                "unet/diffusion_pytorch_model.safetensors",
                "text_encoder/model.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "vae_1_0/diffusion_pytorch_model.safetensors",
            ],
            "vae/diffusion_pytorch_model.safetensors",
        ),
        (
            ["taesd_decoder.safetensors", "taesd_encoder.safetensors", "diffusion_pytorch_model.safetensors"],
            "diffusion_pytorch_model.safetensors",
        ),
        (["a-lora.safetensors", "a.vae.safetensors"], "a.vae.safetensors"),
        (["../../a.vae.safetensors", "b.safetensors"], "b.safetensors"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "vae.pt"], None),
    ],
)
def test_chooses_the_vae_of_a_repository(hub: HubServer, names: list[str], chosen: str | None) -> None:
    put(hub, *names)
    assert found(hub, "acme/x", allow_pickle=True).filename == (chosen or names[-1])


def test_a_folder_narrows_the_choice(hub: HubServer) -> None:
    put(hub, "sd1/vae.safetensors", "sdxl/vae.safetensors", "unet/vae.safetensors")
    assert found(hub, "acme/x/sdxl").filename == "sdxl/vae.safetensors"
    assert found(hub, f"{hub.endpoint}/acme/x/tree/main/unet").filename == "unet/vae.safetensors"


def test_two_equally_likely_files_are_a_question(hub: HubServer) -> None:
    put(hub, "vae-b.safetensors", "vae-a.safetensors", "vae-c.ckpt")
    with pytest.raises(AmbiguousReference, match=r"vae-a\.safetensors, vae-b\.safetensors") as caught:
        found(hub, "acme/x@main")
    assert caught.value.candidates == ("acme/x@main/vae-a.safetensors", "acme/x@main/vae-b.safetensors")
    assert found(hub, caught.value.candidates[1]).filename == "vae-b.safetensors"


def test_two_names_of_one_file_are_not_a_question(hub: HubServer) -> None:
    hub.add("acme/x", {"sdxl.vae.safetensors": b"same", "sdxl_vae.safetensors": b"same"})
    assert found(hub, "acme/x").filename == "sdxl.vae.safetensors"


def test_pickles_need_a_yes(hub: HubServer) -> None:
    put(hub, "kl-f8.ckpt", "config.json")
    for reference in ("acme/x", "acme/x/kl-f8.ckpt"):
        with pytest.raises(PickleRefused, match="can carry code") as caught:
            found(hub, reference)
        assert caught.value.reference == "acme/x/kl-f8.ckpt"
        assert found(hub, reference, allow_pickle=True).filename == "kl-f8.ckpt"
    assert not hub.gets()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("acme/x/config.json", "not a weights file"),
        ("acme/x/b.safetensors", r"no file or folder 'b.safetensors'. It has a.safetensors"),
        ("acme/only-unet", r"no file that looks like the weights of a VAE. It has unet/model.safetensors"),
        ("acme/empty", "no file that looks like the weights of a VAE"),
        ("acme/none", "no repository acme/none .* HF_TOKEN"),
        ("acme/private", "no repository acme/private .* HF_TOKEN"),
        ("acme/x@v9", "no revision 'v9'"),
        ("acme/x@" + "0" * 40, "no revision"),
    ],
)
def test_what_is_not_there_is_said_plainly(hub: HubServer, reference: str, said: str) -> None:
    put(hub, "a.safetensors", "config.json")
    hub.add("acme/only-unet", {"unet/model.safetensors": b"u"})
    hub.add("acme/empty", {"README.md": b""})
    hub.add("acme/private", {"a.safetensors": b"p"}, private=True)
    with pytest.raises(DownloadError, match=said) as caught:
        found(hub, reference)
    assert "\n" not in str(caught.value)


def test_what_is_known_of_an_lfs_file(hub: HubServer) -> None:
    repo = hub.add("acme/x", {"vae/diffusion_pytorch_model.fp16.safetensors": vae_bytes()})
    remote = found(hub, "acme/x")
    assert remote.sha256 == hashlib.sha256(vae_bytes()).hexdigest()
    assert (remote.size, remote.git_sha1, remote.gated) == (len(vae_bytes()), None, False)
    assert remote.revision == repo.commit
    assert remote.url == f"{hub.endpoint}/acme/x/resolve/{repo.commit}/vae/diffusion_pytorch_model.fp16.safetensors"
    assert remote.target_name == "x-vae-fp16.safetensors"


def test_a_mirror_that_lists_no_hashes_still_gives_them_with_the_file(hub: HubServer) -> None:
    hub.add("acme/x", {"a.safetensors": vae_bytes()}, lfs_info=False)
    remote = found(hub, "acme/x")
    assert (remote.size, remote.sha256) == (len(vae_bytes()), hashlib.sha256(vae_bytes()).hexdigest())


def test_a_file_outside_lfs_has_its_git_hash(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hub.hub_server.LFS_EXTENSIONS", ())
    put(hub, "a.safetensors")
    remote = found(hub, "acme/x")
    assert (remote.size, remote.sha256, remote.git_sha1) == (13, None, git_sha1(b"a.safetensors"))


def test_names_with_spaces_and_letters_of_any_script(hub: HubServer) -> None:
    put(hub, "été/my VAE アニメ #1.safetensors")
    assert found(hub, "acme/x").target_name == "my VAE アニメ #1.safetensors"
    assert found(hub, "acme/x/été/my VAE アニメ #1.safetensors").filename.endswith("#1.safetensors")


def test_a_file_far_too_large_for_a_vae_is_refused_before_it_is_fetched(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_lib.hub.remote.MAX_BYTES", 5)
    put(hub, "checkpoint.safetensors")
    with pytest.raises(DownloadError, match="whole checkpoint"):
        found(hub, "acme/x/checkpoint.safetensors")
    with pytest.raises(DownloadError, match="no file that looks like"):
        found(hub, "acme/x")


class TestAccess:
    """Gated and private repositories, tokens good and bad."""

    @pytest.fixture(autouse=True)
    def _repository(self, hub: HubServer) -> None:
        hub.token = "hf_right"
        hub.add("acme/gated", {"a.safetensors": vae_bytes()}, gated=True)
        hub.add("acme/private", {"a.safetensors": vae_bytes()}, private=True)

    def test_gated_without_a_token_names_the_page_of_the_licence(self, hub: HubServer) -> None:
        with pytest.raises(GatedRepository, match="accept its licence") as caught:
            found(hub, "acme/gated")
        assert caught.value.url == f"{hub.endpoint}/acme/gated"  # the hub that is in use
        assert f"open {hub.endpoint}/acme/gated (or https://huggingface.co/acme/gated, if" in str(caught.value)
        assert caught.value.url in str(caught.value)

    def test_with_the_right_token(self, hub: HubServer) -> None:
        assert found(hub, "acme/gated", token="hf_right").gated
        assert found(hub, "acme/private", token="hf_right").filename == "a.safetensors"

    def test_a_token_without_access_gets_the_same_sentence(self, hub: HubServer) -> None:
        hub.fault(r"HEAD .*/resolve/", status=403, times=9)
        with pytest.raises(GatedRepository, match="accept its licence"):
            found(hub, "acme/gated", token="hf_right")

    def test_a_broken_connection_is_not_blamed_on_the_licence(self, hub: HubServer) -> None:
        hub.fault(r"HEAD .*/resolve/", status=503, times=9)
        with pytest.raises(DownloadError, match="HTTP 503") as caught:
            found(hub, "acme/gated", token="hf_right")
        assert not isinstance(caught.value, GatedRepository)

    def test_a_wrong_token_is_named_as_the_problem(self, hub: HubServer) -> None:
        with pytest.raises(DownloadError, match="refused the access token"):
            found(hub, "acme/private", token="hf_wrong")

    @pytest.mark.slow
    def test_hf_token_from_the_environment(self, hub: HubServer) -> None:
        env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_right"}
        env.pop("HF_HUB_DISABLE_IMPLICIT_TOKEN", None)
        assert run_resolve("acme/gated", env)["filename"] == "a.safetensors"


class TestEnvironment:
    @pytest.mark.slow
    def test_hf_endpoint_and_a_proxy(self, hub: HubServer) -> None:
        """The address of the hub does not exist; the proxy, which is our server, is asked for it."""
        put(hub, "a.safetensors")
        env = os.environ | {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.endpoint}
        env |= {"http_proxy": hub.endpoint, "NO_PROXY": "", "no_proxy": ""}
        found = run_resolve("http://hub.invalid/acme/x/blob/main/a.safetensors", env)
        assert found["url"].startswith("http://hub.invalid/acme/x/resolve/")
        assert {request.path.split("/")[1] for request in hub.requests} == {"api", "acme"}

    def test_offline(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            found(hub, "acme/x")
        assert not hub.requests

    def test_without_the_library(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(DownloadError, match="pip install huggingface_hub"):
            found(hub, "acme/x")


def run_resolve(reference: str, env: dict[str, str]) -> dict[str, str]:
    """`resolve` in a process of its own: the library reads its environment when it is imported."""
    code = (
        "import json, sys; from vae_lib.hub import Hub, resolve; r = "
        "resolve(sys.argv[1], Hub());print(json.dumps({'filename': r.filename, 'url': r.url}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, reference], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


class TestRetries:
    @pytest.fixture(autouse=True)
    def _repository(self, hub: HubServer) -> None:
        put(hub, "a.safetensors")

    @pytest.mark.parametrize("match", ["GET /api/", "HEAD "])
    @pytest.mark.parametrize("status", [500, 502, 503, 429])
    def test_passing_errors_are_retried(self, hub: HubServer, match: str, status: int) -> None:
        hub.fault(match, status=status, times=2)
        assert found(hub, "acme/x").filename == "a.safetensors"

    @pytest.mark.slow
    def test_the_server_says_how_long_to_wait(self, hub: HubServer) -> None:
        hub.fault("GET /api/", status=429, headers={"Retry-After": "1"})
        start = time.monotonic()
        found(hub, "acme/x")
        assert time.monotonic() - start >= 0.9  # without, it would be a hundredth of a second

    def test_retry_after_as_a_date(self) -> None:
        class Response:
            headers = {"Retry-After": email.utils.formatdate(time.time() + 250, usegmt=True)}  # noqa: RUF012

        error = Exception()
        error.response = Response()  # type: ignore[attr-defined]
        assert 150 < (client.retry_after(error) or 0) <= 250
        Response.headers["Retry-After"] = "soon"
        assert client.retry_after(error) is None
        Response.headers["Retry-After"] = "1e9"
        assert client.retry_after(error) == client.LONGEST_RETRY_AFTER

    def test_giving_up(self, hub: HubServer) -> None:
        hub.fault("GET /api/", status=503, times=99)
        with pytest.raises(DownloadError, match=r"HTTP 503.*try again later"):
            found(hub, "acme/x")
        assert len(hub.requests) == client.METADATA_ATTEMPTS

    def test_too_many_requests_to_the_end(self, hub: HubServer) -> None:
        hub.fault("GET /api/", status=429, times=99)
        with pytest.raises(DownloadError, match="too many requests"):
            found(hub, "acme/x")

    def test_definite_answers_are_not_asked_for_again(self, hub: HubServer) -> None:
        with pytest.raises(DownloadError):
            found(hub, "acme/none")
        assert len(hub.requests) == 1

    def test_cancelled_while_waiting(self, hub: HubServer) -> None:
        hub.fault("GET /api/", status=503, times=99, headers={"Retry-After": "60"})
        start = time.monotonic()
        with pytest.raises(Cancelled):
            found(hub, "acme/x", cancelled=lambda: time.monotonic() - start > 0.3)
        assert time.monotonic() - start < 30

    def test_nobody_answers(self) -> None:
        with pytest.raises(DownloadError, match=r"connection to 127.0.0.1:1 failed.*HF_ENDPOINT"):
            resolve("acme/x", Hub("http://127.0.0.1:1"))

    def test_something_else_answers(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A captive portal: HTTP 200 and a page of its own."""
        monkeypatch.setattr(
            "tests.hub.hub_server._Handler._info",
            lambda self, path: self._send(200, {"Content-Type": "text/html"}, b"<h1>Please log in</h1>"),
        )
        with pytest.raises(DownloadError, match=r"not the hub's|connection to"):
            found(hub, "acme/x")


class TestCatalog:
    entry = CatalogEntry(
        title="A VAE", family="SDXL", kind="AutoencoderKL", sha256=hashlib.sha256(b"right").hexdigest(),
        id="a-vae", repository="Acme/x", file="a.safetensors", licence="MIT", purpose="For tests.",
        save_as="Nice name.safetensors",
    )  # fmt: skip

    def test_an_entry_is_recognised_however_it_is_named(self, hub: HubServer) -> None:
        hub.add("Acme/x", {"a.safetensors": b"right", "b.ckpt": b"other"})
        catalog = Catalog((self.entry,))
        for reference in ("a-vae", "Acme/x", "Acme/x/a.safetensors"):
            remote = found(hub, reference, catalog=catalog)
            assert remote.entry is self.entry
            assert remote.target_name == "Nice name.safetensors"
        assert found(hub, "Acme/x/b.ckpt", catalog=catalog, allow_pickle=True).entry is None

    def test_another_file_behind_the_entry_is_refused(self, hub: HubServer) -> None:
        hub.add("Acme/x", {"a.safetensors": b"wrong"})
        catalog = Catalog((self.entry,))
        with pytest.raises(DownloadError, match="no longer the file that the catalog knows"):
            found(hub, "a-vae", catalog=catalog)
        # Asked for by name it is a file like any other.
        assert found(hub, "Acme/x/a.safetensors", catalog=catalog).entry is None


@pytest.mark.parametrize(
    ("reference", "branch", "path"),
    [
        ("acme/vae@refs/pr/1", "refs/pr/1", "a.safetensors"),
        ("acme/vae@refs/pr/1/a.safetensors", "refs/pr/1", "a.safetensors"),
        ("acme/vae@feature/x", "feature/x", "a.safetensors"),
        ("acme/vae@feature/x/a.safetensors", "feature/x", "a.safetensors"),
        ("acme/vae@feature/x/y/sub/b.safetensors", "feature/x/y", "sub/b.safetensors"),
        ("hf://acme/vae@feature/x/a.safetensors", "feature/x", "a.safetensors"),
        ("{hub}/acme/vae/tree/feature/x", "feature/x", "a.safetensors"),
        ("{hub}/acme/vae/resolve/feature/x/sub/b.safetensors", "feature/x", "sub/b.safetensors"),
        ("{host}/acme/vae/blob/feature/x/a.safetensors", "feature/x", "a.safetensors"),
        ("huggingface.co/acme/vae@main", None, "a.safetensors"),
    ],
)
def test_branches_with_a_slash(reference: str, branch: str | None, path: str, hub: HubServer) -> None:
    files = {"a.safetensors": vae_bytes(), "sub/b.safetensors": vae_bytes(seed=1), "sub/c.txt": b""}
    hub.add("acme/vae", files, branches=("main", *([branch] if branch else [])))
    reference = reference.format(hub=hub.endpoint, host=hub.endpoint.removeprefix("http://"))
    if branch is None:
        reference = "huggingface.co/acme/vae/blob/main/a.safetensors"
    if "/" not in path and not reference.endswith(path):
        del hub.repos["acme/vae"].files["sub/b.safetensors"]
    assert found(hub, reference).filename == path


def test_a_branch_that_is_not_there_is_told_as_it_was_written(hub: HubServer) -> None:
    hub.add("acme/vae", {"a.safetensors": vae_bytes()})
    with pytest.raises(DownloadError, match="has no revision 'feature'"):
        found(hub, "acme/vae@feature/x/a.safetensors")


def test_an_empty_file_is_the_files_fault(hub: HubServer) -> None:
    hub.add("acme/vae", {"a.safetensors": b""})
    with pytest.raises(DownloadError, match=r"acme/vae/a\.safetensors is an empty file on the hub"):
        found(hub, "acme/vae")
    hub.repos["acme/vae"].lfs_info = False
    with pytest.raises(DownloadError, match=r"acme/vae/a\.safetensors is an empty file on the hub"):
        found(hub, "acme/vae")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://mirror.example", "https://mirror.example"),
        ("https://mirror.example/hub/ ", "https://mirror.example/hub"),
        (" mirror.example", "https://mirror.example"),
        ("localhost:8080", "http://localhost:8080"),
        ("127.0.0.1:9/x", "http://127.0.0.1:9/x"),
        ("", client.HUB),
        ("  ", client.HUB),
    ],
)
def test_addresses_of_hubs(given: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", given.rstrip("/"))
    assert client.endpoint_in_use() == address
    if given.strip():
        assert client.endpoint_in_use(given) == address


@pytest.mark.parametrize("given", ["ftp://mirror.example", "https://", "https://a b", "://"])
def test_what_is_no_address_is_told(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", given)
    with pytest.raises(DownloadError, match=rf"HF_ENDPOINT is '{given}', which is not the address of a hub"):
        resolve("acme/vae", Hub())


def test_a_blank_behind_the_address_in_the_environment(hub: HubServer) -> None:
    """With huggingface_hub 2 it broke the library's import, which was told as an answer that is not the hub's."""
    hub.add("acme/vae", {"a.safetensors": vae_bytes()})
    code = "from vae_lib.hub.client import Hub; print(*Hub().repository('acme/vae').files)"
    env = os.environ | {"HF_ENDPOINT": f"{hub.endpoint} "}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("a.safetensors", 0), done.stderr


def test_files_come_from_an_endpoint_without_a_scheme(hub: HubServer) -> None:
    hub.add("acme/vae", {"a.safetensors": vae_bytes()})
    host = hub.endpoint.removeprefix("http://")
    assert resolve("acme/vae", Hub(f"{host} ")).url.startswith(f"{hub.endpoint}/acme/vae/resolve/")
