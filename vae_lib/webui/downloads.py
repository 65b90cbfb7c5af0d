"""Downloads inside the WebUI: into its folders, over the API, and TAESD when the user wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from fastapi import Body
from fastapi.exceptions import HTTPException

from vae_lib.errors import DownloadError, InputError, printable, written
from vae_lib.guard import NOTHING_LOADED, Notices, Setting
from vae_lib.guard.host import family_name
from vae_lib.hub import DownloadManager, Job, has_taesd, load_catalog
from vae_lib.ui.events import QUIET, look_button
from vae_lib.ui.hints import hinted
from vae_lib.webui.host import WebUI
from vae_lib.webui.request_api import unprocessable

OPTION = "vae_guard_get_taesd"
BUTTON = "vae_guard_taesd"


class Downloads:
    """What is downloaded in this session."""

    def __init__(self, host: WebUI, notices: Notices) -> None:
        self._host, self._notices = host, notices
        self._manager: DownloadManager | None = None

    def manager(self) -> DownloadManager:
        """What downloads run in, started when it is first asked for."""
        if self._manager is None:
            folders = self._host.folders()
            for folder in (folders.vae, folders.taesd):
                with contextlib.suppress(OSError):  # a download says why, in its message
                    folder.mkdir(parents=True, exist_ok=True)
            self._manager = DownloadManager(folders.vae, folders.taesd, on_finished=self._finished)
        return self._manager

    def close(self) -> None:
        """End the downloads; what they have fetched can be resumed."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _finished(self, job: Job) -> None:
        if job.state == "done":
            self._host.refresh_vaes()
        if job.state in ("done", "failed"):
            message = f"{job.reference}: {job.message}"
            self._notices.tell(message, warning=job.state == "failed", page=False)

    def taesd_present(self) -> str:
        """A sentence for the settings: whether TAESD is there for the family of the loaded checkpoint."""
        vae = self._host.loaded()
        if vae is None:
            return NOTHING_LOADED
        family = self._loaded_family()
        if family is None:
            return "No checkpoint of a known family is loaded, so it is not known which TAESD is needed."
        if self._has_taesd(family):
            return f"TAESD for {family}, the loaded checkpoint's family, is here."
        if load_catalog().taesd_for(family) is None:
            return f"There is no TAESD for {family}, the loaded checkpoint's family."
        return f"TAESD for {family}, the loaded checkpoint's family, is not here yet."

    def _can_get_taesd(self) -> bool:
        """Whether the button has an effect, as far as one knows."""
        family = self._loaded_family()
        return family is None or (not self._has_taesd(family) and load_catalog().taesd_for(family) is not None)

    def get_taesd(self) -> Iterator[str]:
        """Fetch TAESD for the loaded checkpoint's family; yields sentences until that has ended."""
        family = self._loaded_family()
        entry = None if family is None else load_catalog().taesd_for(family)
        if family is None or entry is None or self._has_taesd(family):
            yield self.taesd_present()
            return
        running = self.manager()
        job_id = running.start(entry.id)
        while (found := running.wait(job_id, 0.4)) is not None and found.active:
            yield found.message
        yield self.taesd_present() if found is None or found.state == "done" else found.message

    def get_taesd_if_wanted(self) -> None:
        """When a checkpoint was loaded: fetch TAESD of its family in the background, if the user has asked for that."""
        family = self._loaded_family()
        if not self._host.settings().get(OPTION, False) or family is None or self._has_taesd(family):
            return
        entry = load_catalog().taesd_for(family)
        if entry is not None and not any(job.active and job.reference == entry.id for job in self.manager().jobs()):
            self.manager().start(entry.id)

    def _loaded_family(self) -> str | None:
        return family_name(self._host.loaded())

    def _has_taesd(self, family: str) -> bool:
        return has_taesd(self._host.folders().taesd, family)

    # Settings > VAE Guard

    def settings(self) -> Sequence[Setting]:
        """The option and the button, after the others of this extension."""
        wanted = Setting(
            OPTION,
            False,
            "Download TAESD when a checkpoint of its family is loaded",
            gr.Checkbox,
            info="a few MB from Hugging Face, once for each family",
        )
        button = Setting(
            BUTTON,
            "TAESD, the tiny decoder, is the last resort. It is never downloaded in the middle of a generation.",
            "TAESD",
            self._taesd_button,
            saved=False,
        )
        return wanted, button

    def _taesd_button(self, label: str, value: str, elem_id: str, **_: Any) -> Any:
        """The setting's component: a text, which the host takes for its value, a line on what is there, a button."""
        with gr.Column(elem_id=f"{elem_id}_column"):
            text = gr.HTML(value, label=label, elem_id=elem_id)
            state = gr.HTML(elem_id=f"{elem_id}_state")
            get = gr.Button("Get TAESD for the loaded checkpoint", elem_id=f"{elem_id}_get")
            hinted(get, "A few MB from Hugging Face, once for each family")
            look = look_button()

        def shown() -> Iterator[Any]:
            for sentence in self.get_taesd():
                yield escape(sentence), gr.update(interactive=False)
            yield escape(sentence), gr.update(interactive=self._can_get_taesd())

        get.click(shown, None, [state, get], **QUIET)
        look.click(
            lambda: (escape(self.taesd_present()), gr.update(interactive=self._can_get_taesd())),
            None, [state, get], **QUIET,
        )  # fmt: skip
        return text

    # ``/vae-guard/downloads``

    def start(self, body: Any = Body(None)) -> dict[str, Any]:  # noqa: B008
        """Start a download: ``{"reference": "owner/name"}``, and ``allow_pickle`` or ``rename``, both false by default.

        ``reference`` is a name of the catalog, owner/name, owner/name/file or an address.
        """
        try:
            wanted = _arguments(body)
        except InputError as error:
            raise unprocessable(error) from error
        try:
            job_id = self.manager().start(
                wanted["reference"],
                allow_pickle=wanted["allow_pickle"],
                on_conflict="rename" if wanted["rename"] else "ask",
            )
        except DownloadError as error:
            raise unprocessable(error) from error
        return self.job(job_id)

    def jobs(self) -> list[dict[str, Any]]:
        """All downloads of this session."""
        return [_described(item) for item in self.manager().jobs()]

    def job(self, job_id: str) -> dict[str, Any]:
        """One download."""
        return _described(self._known(job_id))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a download; what it has fetched can be resumed."""
        self.manager().cancel(self._known(job_id).id)
        return self.job(job_id)

    def _known(self, job_id: str) -> Job:
        found = next((item for item in self.manager().jobs() if item.id == job_id), None)
        if found is None:
            raise HTTPException(status_code=404, detail=f"There is no download {job_id!r}.")
        return found


def _arguments(body: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"reference": "", "allow_pickle": False, "rename": False}
    if not isinstance(body, dict):
        raise InputError('The body must be a JSON object such as {"reference": "owner/name"}.')
    for name, value in body.items():
        if name not in defaults:
            raise InputError(f"There is no argument {name!r}; there are {', '.join(defaults)}.")
        if type(value) is not type(defaults[name]):
            kind = "a text" if name == "reference" else "true or false"
            raise InputError(f"'{name}' must be {kind}, not {written(value)}.")
    wanted = defaults | body
    wanted["reference"] = wanted["reference"].strip()
    if not wanted["reference"]:
        raise InputError("'reference' must name something to download.")
    return wanted


def _described(item: Job) -> dict[str, Any]:
    return {
        "id": item.id,
        "reference": item.reference,
        "state": item.state,
        "message": item.message,
        "done": item.done,
        "total": item.total,
        "path": None if item.result is None else printable(str(item.result.path)),
        "candidates": list(getattr(item.error, "candidates", ())),
    }
