"""Downloads inside the WebUI: into its folders, over the API, and TAESD when the user wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from vae_lib.errors import InputError
from vae_lib.hub import DownloadManager, Job, has_taesd, load_catalog
from vae_lib.webui import api, notices
from vae_lib.webui.first_stage import family_of, taesd_folder

OPTION = "vae_guard_get_taesd"
BUTTON = "vae_guard_taesd"
_manager: DownloadManager | None = None


def vae_folder() -> Path:
    """Where the host looks for VAEs."""
    from modules import sd_vae, shared

    return Path(shared.cmd_opts.vae_dir or sd_vae.vae_path)


def manager() -> DownloadManager:
    """What downloads run in, started when it is first asked for."""
    global _manager
    if _manager is None:
        for folder in (vae_folder(), taesd_folder()):
            with contextlib.suppress(OSError):  # a download says why, in its message
                folder.mkdir(parents=True, exist_ok=True)
        _manager = DownloadManager(vae_folder(), taesd_folder(), on_finished=_finished)
    return _manager


def close() -> None:
    """End the downloads; what they have fetched can be resumed."""
    global _manager
    if _manager is not None:
        _manager.close()
        _manager = None


def _finished(job: Job) -> None:
    from modules import sd_vae

    if job.state == "done":
        sd_vae.refresh_vae_list()
    if job.state in ("done", "failed"):
        notices.tell(f"{job.reference}: {job.message}", warning=job.state == "failed", page=False)


def taesd_present() -> str:
    """A sentence for the settings: whether TAESD is there for the family of the loaded checkpoint."""
    family = _loaded_family()
    if family is None:
        return "No checkpoint of a known family is loaded, so it is not known which TAESD is needed."
    if has_taesd(taesd_folder(), family):
        return f"TAESD for {family}, the loaded checkpoint's family, is here."
    if load_catalog().taesd_for(family) is None:
        return f"There is no TAESD for {family}, the loaded checkpoint's family."
    return f"TAESD for {family}, the loaded checkpoint's family, is not here yet."


def get_taesd() -> Iterator[str]:
    """Fetch TAESD for the loaded checkpoint's family; yields sentences until that has ended."""
    family = _loaded_family()
    entry = None if family is None else load_catalog().taesd_for(family)
    if family is None or entry is None or has_taesd(taesd_folder(), family):
        yield taesd_present()
        return
    running = manager()
    job_id = running.start(entry.id)
    while (found := running.wait(job_id, 0.4)) is not None and found.active:
        yield found.message
    yield taesd_present() if found is None or found.state == "done" else found.message


def _loaded_family() -> str | None:
    from modules import sd_models

    model = sd_models.model_data.sd_model  # shared.sd_model would load one
    return None if model is None else family_of(model)


def get_taesd_for(model: Any) -> None:
    """When a checkpoint is loaded: fetch TAESD of its family in the background, if the user has asked for that."""
    from modules import shared

    family = family_of(model)
    if not getattr(shared.opts, OPTION, False) or family is None or has_taesd(taesd_folder(), family):
        return
    entry = load_catalog().taesd_for(family)
    if entry is not None and not any(job.active and job.reference == entry.id for job in manager().jobs()):
        manager().start(entry.id)


def add_to_settings() -> None:
    """The option and the button, after the others of this extension."""
    import gradio as gr
    from modules import shared

    from vae_lib.webui.options import SECTION

    wanted = shared.OptionInfo(
        False,
        "Download TAESD when a checkpoint of its family is loaded",
        gr.Checkbox,
        section=SECTION,
        category_id="sd",
    )
    shared.opts.add_option(OPTION, wanted.info("a few MB from Hugging Face, once for each family"))
    button = shared.OptionInfo(
        "TAESD, the tiny decoder, is what falls back last. It is never downloaded in the middle of a generation.",
        "TAESD",
        _taesd_button,
        section=SECTION,
        category_id="sd",
    )
    button.do_not_save = True
    shared.opts.add_option(BUTTON, button)


def _taesd_button(label: str, value: str, elem_id: str, **_: Any) -> Any:
    """The setting's component: a text, which the host takes for its value, a line on what is there, and a button."""
    import gradio as gr

    with gr.Column(elem_id=f"{elem_id}_column"):
        text = gr.HTML(value, label=label, elem_id=elem_id, elem_classes="settings-info")
        state = gr.HTML(
            lambda: escape(taesd_present()), elem_id=f"{elem_id}_state"
        )  # asked at each page load
        get = gr.Button("Get TAESD for the loaded checkpoint", elem_id=f"{elem_id}_get")
    get.click(_shown_taesd, None, state, show_progress="hidden", api_name=False)
    return text


def _shown_taesd() -> Iterator[str]:
    for sentence in get_taesd():
        yield escape(sentence)


def add_routes(demo: Any, app: Any) -> None:
    """``POST /vae-guard/downloads``, ``GET`` for all, and ``GET`` or ``DELETE`` for one."""
    from modules import shared

    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    guarded = api.dependencies()
    path, one = "/vae-guard/downloads", "/vae-guard/downloads/{job_id}"
    app.add_api_route(path, start, methods=["POST"], dependencies=guarded)
    app.add_api_route(path, jobs, methods=["GET"], dependencies=guarded)
    app.add_api_route(one, job, methods=["GET"], dependencies=guarded)
    app.add_api_route(one, cancel, methods=["DELETE"], dependencies=guarded)


def start(reference: str, allow_pickle: bool = False, rename: bool = False) -> dict[str, Any]:
    """Start a download: a name of the catalog, owner/name, owner/name/file or an address."""
    if not reference.strip():
        raise api.unprocessable(InputError("'reference' must name something to download."))
    job_id = manager().start(
        reference.strip(), allow_pickle=allow_pickle, on_conflict="rename" if rename else "ask"
    )
    return job(job_id)


def jobs() -> list[dict[str, Any]]:
    """All downloads of this session."""
    return [_described(item) for item in manager().jobs()]


def job(job_id: str) -> dict[str, Any]:
    """One download."""
    return _described(_known(job_id))


def cancel(job_id: str) -> dict[str, Any]:
    """Stop a download; what it has fetched can be resumed."""
    manager().cancel(_known(job_id).id)
    return job(job_id)


def _known(job_id: str) -> Job:
    from fastapi.exceptions import HTTPException

    found = next((item for item in manager().jobs() if item.id == job_id), None)
    if found is None:
        raise HTTPException(status_code=404, detail=f"There is no download {job_id!r}.")
    return found


def _described(item: Job) -> dict[str, Any]:
    return {
        "id": item.id,
        "reference": item.reference,
        "state": item.state,
        "message": item.message,
        "done": item.done,
        "total": item.total,
        "path": None if item.result is None else str(item.result.path),
        "candidates": list(getattr(item.error, "candidates", ())),
    }
