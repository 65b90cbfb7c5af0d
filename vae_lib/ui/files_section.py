"""The first section: which VAEs there are, what each is, and using one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from vae_lib.checkpoints import FAMILIES, Family, Identity
from vae_lib.errors import VAEGuardError
from vae_lib.ui import markup
from vae_lib.ui.backend import Backend, Checkpoint
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.library import Library, Row
from vae_lib.units import size_text

PICK = "vg_pick_file"
USES = "vg_uses"  # changes whenever a file was chosen
_ALWAYS, _NEVER = "Always with this checkpoint", "No longer with this checkpoint"
_SURE = {
    "hash": "by its hash",
    "tensors": "by its tensors",
    "metadata": "by its metadata",
    "checkpoint": "by its checkpoint",
}
_HEAD = ("Name", "Family", "Layout", "Type", "Size", "Hash")


def mismatch(identity: Identity, checkpoint: Checkpoint | None) -> str:
    """The sentence for a VAE that does not belong to the checkpoint; empty when it may."""
    wanted = FAMILIES.get(checkpoint.family or "") if checkpoint is not None else None
    if checkpoint is None or wanted is None:
        return ""
    if identity.family is not None:
        fits = identity.family.shares_latents(wanted)
    else:
        fits = identity.latent_channels == wanted.latent_channels
    if fits:
        return ""
    return (
        f"This VAE is of {identity.family_name} and the checkpoint {checkpoint.title} of {wanted.name}: pictures "
        "would come out wrong. Choose a VAE of the checkpoint's family."
    )


def family_text(identity: Identity) -> str:
    """The family, or those that it may be, the likeliest first: "SDXL or SD1"; of those that share latents, one."""
    if identity.family is not None or not identity.candidates:
        return identity.family_name
    if identity.is_taesd and identity.guess is not None:
        return identity.guess.name  # the WebUI finds these files by their names, too
    likeliest: list[Family] = []
    for family in (identity.likely_family(), *identity.candidates):
        if not any(family.shares_latents(other) for other in likeliest):
            likeliest.append(family)
    return " or ".join(family.name for family in likeliest)


def _certainty(identity: Identity) -> str:
    if identity.family is None and identity.guess is not None:
        return "by its name, not certain"
    return _SURE.get(identity.certainty, "not certain")


def files_table(backend: Backend, rows: Sequence[Row], chosen: str | None) -> str:
    """All files, the damaged ones with what is wrong with them."""
    in_use, assigned, checkpoint = backend.in_use(), backend.assigned(), backend.checkpoint()
    body, number = [], None
    for index, row in enumerate(rows):
        name = markup.pick_button(PICK, index, row.name)
        if row.name == in_use:
            name += " " + markup.chip("in use", on=True)
        if row.name == assigned:
            name += " " + markup.chip("always with this checkpoint")
        if row.name == chosen:
            number = index
        identity = row.identity
        if identity is None:
            problem = f'<span class="vg-bad-text">{escape(row.problem or "")}</span>'
            body.append([(name, ""), (problem, "vg-wide"), *[("", "")] * 4])
            continue
        kind = "" if not identity.is_taesd else f"{markup.chip(identity.kind)} "
        warning = (
            " " + '<span class="vg-bad-text">other family</span>' if mismatch(identity, checkpoint) else ""
        )
        body.append(
            [
                (f"{name} {kind}", ""),
                (escape(family_text(identity)) + warning, "vg-wide"),
                (escape(identity.layout), ""),
                (escape(_dtype(identity.dtype)), ""),
                (size_text(identity.file_size), "vg-num"),
                (identity.short_hash or ("…" if row.hashing else "–"), "vg-mono"),
            ]
        )
    own = ""
    if in_use is None and checkpoint is not None:
        own = markup.page(
            f"<p>In use now: the VAE inside the checkpoint <b>{escape(checkpoint.title)}</b>.</p>"
        )
    return own + markup.table(_HEAD, body, number, "There are no VAEs yet: get one in Downloads.")


def details(backend: Backend, row: Row | None) -> str:
    """Everything that is known of one file."""
    if row is None:
        return markup.page('<p class="vg-dim">Click a name to see what the file is.</p>')
    if row.identity is None:
        return markup.page(f"<h4>{escape(row.name)}</h4>") + markup.note(row.problem or "", "bad")
    found = row.identity
    factors = "unknown"
    if found.scaling_factor is not None:
        factors = f"{found.scaling_factor:g}" + (
            f", shift {found.shift_factor:g}" if found.shift_factor else ""
        )
    pairs = [
        ("Family", f"{family_text(found)}, {_certainty(found)}"),
        ("Kind", f"{found.kind}, {found.layout} layout"),
        ("Latents", f"{found.latent_channels} channels, scaling factor {factors}"),
        ("Weights", f"{found.parameters / 1e6:.1f} million, {_dtype(found.dtype)}"),
        ("File", f"{found.path} ({size_text(found.file_size)})"),
        (
            "SHA-256",
            found.sha256 or ("being computed" if row.hashing else "not computed: a whole checkpoint"),
        ),
    ]
    warning = markup.note(mismatch(found, backend.checkpoint()), "warn")
    return markup.page(
        f"<h4>{escape(row.name)}</h4><p>{escape(found.explanation)}</p>{markup.facts(pairs)}{warning}"
    )


def use(backend: Backend, library: Library, name: str | None, *, always: bool = False) -> str:
    """Select a file, or tie it to the checkpoint, or untie it; the sentence that says how it went, as HTML."""
    row = library.row(name)
    if row is None or name is None:
        return markup.note("Choose a VAE in the table first.", "warn")
    if row.identity is None:
        return markup.note(row.problem or "", "bad")
    if row.identity.is_taesd:
        return markup.note(
            "A TAESD is not used in place of a VAE: VAE Guard falls back to it by itself, and the WebUI has its "
            "own option for it.",
            "warn",
        )
    checkpoint = backend.checkpoint()
    try:
        if not always:
            backend.select(name)
            done, is_void = f"{name} is now in use.", False
        elif backend.assigned() == name:
            backend.assign(None)
            done, is_void = f"{name} is not tied to {_title(checkpoint)} any more.", False
        else:
            backend.assign(name)
            done, is_void = _assigned(backend, name, checkpoint)
    except VAEGuardError as error:
        return markup.note(str(error), "warn")
    warning = mismatch(row.identity, checkpoint)
    return markup.note(f"{done} {warning}".strip(), "warn" if warning or is_void else "")


def _assigned(backend: Backend, name: str, checkpoint: Checkpoint | None) -> tuple[str, bool]:
    """What has come of tying a file to the checkpoint, and whether it has no effect."""
    chosen = backend.overrides_assigned()
    if chosen is None:
        return f"{name} is now used whenever {_title(checkpoint)} is.", False
    return (
        f"{name} is noted for {_title(checkpoint)}, but without effect as long as {chosen} is selected in Settings > "
        "VAE: a selected VAE overrides those of single checkpoints. Press 'Set SD VAE to Automatic' to use it.",
        True,
    )


def _title(checkpoint: Checkpoint | None) -> str:
    return "this checkpoint" if checkpoint is None else checkpoint.title


class FilesSection:
    """The components, with ``table_outputs`` for other sections that change the folder."""

    def __init__(self, backend: Backend, library: Library) -> None:
        self._backend, self._library = backend, library
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                self.table = gr.HTML(elem_id="vg_files")
                self.pick = gr.Radio(choices=[], elem_id=PICK, elem_classes="vg-hidden")
                refresh = gr.Button("Refresh", size="sm", elem_id="vg_refresh")
                hinted(refresh, "Look at the folders again")
            with gr.Column(scale=3, min_width=300):
                self.details = gr.HTML(details(backend, None), elem_id="vg_details")
                with gr.Row():
                    use_it = gr.Button("Use it", variant="primary", elem_id="vg_use", min_width=120)
                    hinted(
                        use_it,
                        "Make the file that is chosen in the table the VAE in use, as the WebUI's own choice does",
                    )
                    self.always = gr.Button(
                        _ALWAYS, visible=backend.can_assign(), elem_id="vg_assign", min_width=120
                    )
                    hinted(
                        self.always,
                        "Note this VAE for the checkpoint that is loaded, or forget it: used while SD VAE is Automatic",
                    )
                    self.automatic = gr.Button(
                        "Set SD VAE to Automatic", visible=False, elem_id="vg_automatic", min_width=120
                    )
                    hinted(
                        self.automatic,
                        "Let each checkpoint have the VAE noted for it, or else its own",
                    )
                self.said = gr.HTML(elem_id="vg_said")
                uses = gr.Number(0, elem_id=USES, elem_classes="vg-hidden")
        self.table_outputs = [self.table, self.pick, self.details, self.always, self.automatic]
        shown = {"outputs": self.table_outputs, **QUIET}
        self.pick.input(self.show, self.pick, **shown)
        refresh.click(self._refresh, None, self.said, **QUIET).then(self.watch, self.pick, **shown)
        for button, function in (
            (use_it, self._use),
            (self.always, self._always),
            (self.automatic, self._automatically),
        ):
            button.click(function, self.pick, [self.said, uses], **QUIET).then(self.show, self.pick, **shown)

    def show(self, chosen: str | None) -> tuple[Any, ...]:
        """The table as it is now, and what can be done."""
        rows = self._library.rows()
        names = [row.name for row in rows]
        row = next((row for row in rows if row.name == chosen), None)
        choices = gr.update(choices=names, value=chosen if chosen in names else None)
        assigned = self._backend.assigned()
        is_void = assigned is not None and self._backend.overrides_assigned() is not None
        return (
            files_table(self._backend, rows, chosen),
            choices,
            details(self._backend, row),
            gr.update(value=_NEVER if assigned is not None and assigned == chosen else _ALWAYS),
            gr.update(visible=is_void and self._backend.can_assign()),
        )

    def watch(self, chosen: str | None) -> Iterator[tuple[Any, ...]]:
        """The table, again and again until all hashes are there."""
        yield self.show(chosen)
        left = self._library.hashing
        while left:
            time.sleep(0.4)
            if self._library.hashing != left:
                left = self._library.hashing
                table, choices, text, *buttons = self.show(chosen)
                choices.pop("value")  # the user may have chosen another in the meantime
                yield table, choices, text if chosen is not None else gr.update(), *buttons

    def _refresh(self) -> str:
        try:
            self._backend.refresh()
        except VAEGuardError as error:
            return markup.note(str(error), "bad")
        return ""

    def _use(self, name: str | None) -> tuple[str, float]:
        return use(self._backend, self._library, name), time.time()

    def _always(self, name: str | None) -> tuple[str, float]:
        return use(self._backend, self._library, name, always=True), time.time()

    def _automatically(self, _: str | None) -> tuple[str, float]:
        try:
            self._backend.select_automatically()
        except VAEGuardError as error:
            return markup.note(str(error), "warn"), time.time()
        assigned = self._backend.assigned()
        now = f"{assigned} is now in use." if assigned else "The checkpoint's own VAE is now in use."
        return markup.note(f"SD VAE is set to Automatic. {now}"), time.time()


def _dtype(names: str) -> str:
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return ", ".join(short.get(name, name) for name in names.split(", "))
