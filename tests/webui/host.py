"""A WebUI for the tests: started on a free port with a data folder of its own, talked to over its API, stopped.

By default this is the double in tests/host_double. With WEBUI_DIR (a checkout whose own environment is ready) and
WEBUI_PYTHON (its interpreter) in the environment, it is that WebUI; the checkout is only read.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.webui import weights

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests" / "host_double"
EXTENSION = "vae guard (a copy)"  # the folder may have any name
PARTS = ("scripts", "javascript", "vae_lib", "install.py", "metadata.ini", "style.css")
WEBUI_DIR = os.environ.get("WEBUI_DIR") and os.path.abspath(os.environ["WEBUI_DIR"])
WEBUI_PYTHON = os.path.abspath(os.environ.get("WEBUI_PYTHON") or sys.executable)
IS_REAL = bool(WEBUI_DIR)
IS_FORK = bool(WEBUI_DIR) and os.path.isdir(f"{WEBUI_DIR}/modules_forge")  # Forge, reForge
IS_REFORGE = IS_FORK and os.path.isdir(f"{WEBUI_DIR}/ldm_patched")
IS_CLASSIC = IS_REFORGE and not os.path.exists(f"{WEBUI_DIR}/modules/lowvram.py")
IS_FORGE = IS_FORK and not IS_REFORGE
IS_NEO = IS_FORGE and '"neo"' in Path(f"{WEBUI_DIR}/modules_forge/forge_version.py").read_text()


class ApiError(Exception):
    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


@dataclass(frozen=True)
class Picture:
    """One generation's answer: 8-bit pictures and their infotexts.

    Attributes:
        distances: each decode and encode of it in turn, and how far it was from the same one in float64.
    """

    images: list[np.ndarray]
    infotexts: list[str]
    distances: list[tuple[str, float]]

    @property
    def infotext(self) -> str:
        return self.infotexts[-1]


@dataclass
class Host:
    url: str
    data: Path
    log_file: Path
    process: subprocess.Popen[bytes]
    opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(urllib.request.ProxyHandler({}))
    )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        return self._send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any = None) -> Any:
        data = json.dumps(body if body is not None else {}).encode()
        return self._send(
            urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}), timeout=600
        )

    def delete(self, path: str) -> Any:
        return self._send(urllib.request.Request(self.url + path, method="DELETE"))

    def _send(self, request: urllib.request.Request, timeout: float = 240) -> Any:
        try:
            with self.opener.open(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError):
                raise ApiError(error.code, json.loads(text)) from None
            raise

    def generate(self, tab: str = "txt2img", guard: Any = None, **parameters: Any) -> Picture:
        """A generation over the API; ``guard`` is what goes into our ``args``."""
        body = {
            "prompt": "a cup", "width": 128, "height": 128, "steps": 2, "seed": 1, "sampler_name": "Euler",
        }  # fmt: skip
        if IS_FORGE and parameters.get("enable_hr"):
            body["hr_additional_modules"] = ["Use same choices"]  # Forge's hires fix fails without it
        if IS_NEO:
            body["hr_cfg"] = 7.0  # else 1, and then it asks for no negative prompt
        body |= parameters
        if guard is not None:
            body["alwayson_scripts"] = {**body.get("alwayson_scripts", {}), "VAE Guard": {"args": guard}}
        answer = self.post(f"/sdapi/v1/{tab}", body)
        info = json.loads(answer["info"])
        return _picture(answer["images"], info["infotexts"], info["extra_generation_params"]["distances"])

    def kept(self, place: int = 0) -> str:
        """Where the API has the latents that are now at this place of its list, the latest first."""
        return f"/vae-guard/latents/{self.get('/vae-guard/latents')[place]['id']}"

    def decode_again(self, place: int = 0) -> Picture:
        """Kept latents, decoded by our own route."""
        before = len(self.get("/probe/distances"))
        answer = self.post(f"{self.kept(place)}/decode")
        return _picture(answer["images"], answer["infotexts"], self.get("/probe/distances")[before:])

    @contextlib.contextmanager
    def options(self, **values: Any) -> Iterator[None]:
        """Settings for a while."""
        before = self.get("/probe/options")
        self.post("/sdapi/v1/options", values)
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", {key: before[key] for key in values})

    def use_vae(self, name: str) -> None:
        """Choose a VAE as the user would; "None": the checkpoint's own."""
        self.post("/sdapi/v1/options", vae_setting(name))

    def vaes(self) -> dict[str, str]:
        """What can be chosen: names and paths."""
        listed = self.get("/sdapi/v1/sd-modules" if IS_FORGE else "/sdapi/v1/sd-vae")
        return {item["model_name"]: item["filename"] for item in listed}

    def vae_in_use(self) -> str | None:
        """Its path; None while it is the checkpoint's own."""
        path: str | None = self.get("/probe/state")["vae"]
        return path

    def enable(self, wanted: bool) -> None:
        """As the tab Extensions does: note it in the settings, then Reload UI."""
        self.post("/sdapi/v1/options", {"disabled_extensions": [] if wanted else [EXTENSION]})
        self.reload()

    def reload(self) -> None:
        """As the button Reload UI does; back when the page is up again with the scripts loaded anew."""
        before, starts = self.get("/probe/state")["loaded"], self.starts()
        self.post("/probe/reload")
        self.wait(lambda: self.starts() > starts, 300)
        assert self.get("/probe/state")["loaded"] != before

    def starts(self) -> int:
        """How often the page came up. A host cannot bear requests while it is coming up, so ask its console."""
        return self.log().count("Startup time:")

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ApiError, ValueError):
                if ready():
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the host did not come up; the end of its console:\n{self.log()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def vae_setting(name: str) -> dict[str, Any]:
    """The setting that chooses a VAE; Forge loads it at the next generation."""
    if IS_FORGE:
        return {"forge_additional_modules": [] if name == "None" else [name]}
    return {"sd_vae": name}


def _picture(images: list[str], infotexts: list[str], distances: list[list[Any]]) -> Picture:
    pictures = [np.asarray(decode(image).convert("RGB")) for image in images]
    return Picture(pictures, infotexts, [(operation, distance) for operation, distance in distances])


def decode(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def encode(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_extension(folder: Path) -> None:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / part)


def as_first_stage(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights as they are named in a checkpoint."""
    return {f"first_stage_model.{name}": value for name, value in vae.items()}


def make_checkpoint(vae_file: Path, checkpoint: Path) -> None:
    """A small one with that VAE, by the real host's own libraries, or an A1111's where the host has none."""
    maker = ROOT / "tests/webui/make_checkpoint.py"
    python, webui = (os.environ.get(f"MAKER_{name}") or os.environ[f"WEBUI_{name}"] for name in ("PYTHON", "DIR"))
    command = [python, maker, webui, vae_file, checkpoint]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def prepare_data(data: Path) -> None:
    """A data folder with the extension, checkpoints, VAEs of several kinds and TAESD."""
    install_extension(data / "extensions" / EXTENSION)
    shutil.copytree(ROOT / "tests/webui/probe", data / "extensions/probe", ignore=shutil.ignore_patterns("__pycache__"))
    models = data / "models"
    own, other = weights.vae(1), weights.vae(2)
    checkpoint = models / "Stable-diffusion" / "small.safetensors"
    checkpoint.parent.mkdir(parents=True)
    if IS_REAL:
        make_checkpoint(weights.save_vae(data / "own-vae.safetensors", own), checkpoint)
    else:
        save_file(as_first_stage(own), checkpoint)
        marked = {"model.diffusion_model.x_embedder.proj.weight": torch.zeros(64, 16, 2, 2)}
        save_file(marked | as_first_stage(weights.vae_sd3()), checkpoint.with_stem("small_sd3"))
    for name, seed in (
        ("small_refiner", 5),
        ("small_with_noted_vae", 6),
    ):  # sorted after "small": it is loaded first
        with_another_vae = checkpoint.with_stem(name)
        save_file(load_file(checkpoint) | as_first_stage(weights.vae(seed)), with_another_vae)
        if IS_REAL:
            shutil.copy(checkpoint.with_suffix(".yaml"), with_another_vae.with_suffix(".yaml"))
    checkpoint.with_name("small_with_noted_vae.json").write_text('{"vae": "other.safetensors"}')
    weights.save_vae(models / "VAE" / "other.safetensors", other)
    weights.save_vae(models / "VAE" / "other-diffusers.safetensors", weights.as_diffusers(other))
    weights.save_vae(models / "VAE" / "wrong.safetensors", {"lora_unet.down.weight": own["quant_conv.weight"]})
    weights.save_vae(models / "VAE" / "a" / "twin.safetensors", other)
    weights.save_vae(models / "VAE" / "b" / "twin.safetensors", weights.vae(3))
    weights.save_taesd(models / "VAE-taesd")


def start(
    data: Path,
    *arguments: str,
    disabled: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    **settings: Any,
) -> Host:
    """Start the host on a data folder and wait until its checkpoint is loaded; ``variables``: its environment."""
    port = free_port()
    quiet = {"live_previews_enable": False, "samples_save": False, "disabled_extensions": list(disabled)}
    if IS_FORK:  # reForge does not note it by itself, and puts back after a generation only what is noted
        quiet["sd_model_checkpoint"] = "small.safetensors"
    if IS_NEO:
        quiet |= {"VERSION_UID": "PY313", "forge_preset": "sd"}  # else it asks on the console
    settings = quiet | settings
    (data / "config.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if not re.match("GRADIO_|COMMANDLINE_ARGS", name)}
    environment |= {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "SD_WEBUI_RESTARTING": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost", "MPLBACKEND": "agg",
    }  # fmt: skip
    environment |= variables or {}
    flags = ["--api", "--port", str(port), "--data-dir", str(data), *arguments]
    if IS_NEO:
        (data / "tmp").mkdir(exist_ok=True)  # its webui.bat makes it
        flags += ["--cpu", "--skip-install"]
    else:
        flags += ["--use-cpu", "all", "--no-half"]
    if IS_REAL:
        skipped = ("prepare-environment", "python-version-check", "torch-cuda-test")
        flags += [f"--skip-{name}" for name in skipped]
        flags += [] if IS_NEO else ["--no-download-sd-model", "--skip-version-check"]
        flags += ["--always-cpu", "--all-in-fp32"] if IS_FORK and not IS_NEO else []
        # else its own scripts are refused
        flags += ["--gradio-allowed-path", str(WEBUI_DIR)] if IS_FORGE else []
        command, folder = [WEBUI_PYTHON, "launch.py"], str(WEBUI_DIR)
    else:
        command, folder = [sys.executable, "webui.py"], str(DOUBLE)
    log = data / "console.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *flags], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file,
        )  # fmt: skip
    host = Host(f"http://127.0.0.1:{port}", data, log, process)
    try:
        host.wait(
            lambda: host.starts() > 0
            # Forge loads at the first generation; two threads may write into one line
            and (IS_FORGE or re.search("Model .*loaded in", host.log()) is not None)
            and host.get("/probe/state")["model"],
            600,
        )
    except BaseException:
        host.stop()
        raise
    return host
