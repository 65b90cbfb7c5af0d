"""The part of the memory section that tries this device: every route beside the plain network."""

from __future__ import annotations

import html
import queue
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch

from vae_lib.decode.check import Limits, Report, check
from vae_lib.device import DTYPES
from vae_lib.device.memory import FIRST_PROMISE
from vae_lib.engine import Compute, Operation
from vae_lib.errors import VAEGuardError
from vae_lib.networks import sample_network
from vae_lib.ui import markup
from vae_lib.ui.backend import Backend
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted


class CheckSection:
    """A button, the table that it brings, and the report to copy."""

    def __init__(self, backend: Backend, dtype: gr.Dropdown, operation: gr.Dropdown) -> None:
        self._backend = backend
        self._turn, self._stopped = threading.Lock(), threading.Event()
        with gr.Row(variant="compact"):
            self.go = gr.Button("Check this device", size="sm", elem_id="vg_check", min_width=160)
            self.stop = gr.Button("Stop", size="sm", interactive=False, elem_id="vg_check_stop", min_width=80)
        hinted(self.go, "Run every route on this device beside the plain network; a minute at most")
        hinted(self.stop, "End the check and show the results so far")
        self.said = gr.HTML(
            markup.page(
                '<p class="vg-dim">Decodes noise by every route, in at most a minute and within the free memory: is it '
                "the picture of the plain network, how fast is it, and does it take what was predicted?</p>"
            ),
            elem_id="vg_check_said",
        )
        self.report = gr.Textbox(
            label="To copy into an issue: it has no paths and no names of yours",
            lines=4, max_lines=20, interactive=False, show_copy_button=True, visible=False, elem_id="vg_check_report",
        )  # fmt: skip
        self.stop.click(self._stopped.set, None, None, **QUIET)
        self.go.click(self._run, [dtype, operation], [self.said, self.report, self.stop], **QUIET)

    def _run(self, dtype: str, operation: str) -> Iterator[tuple[str, Any, Any]]:
        """What is being checked, then the report."""
        if not self._turn.acquire(blocking=False):
            yield (
                markup.note("A check is running already; wait until it has ended.", "bad"),
                gr.update(),
                gr.update(),
            )
            return
        running, over = gr.update(interactive=True), gr.update(interactive=False)
        self._stopped.clear()
        try:
            said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
            found: list[Report | VAEGuardError] = []
            compute = Compute(self._backend.device(), DTYPES[dtype], cancelled=self._stopped.is_set)
            arguments = (Operation(operation), compute, said, found)
            thread = threading.Thread(target=self._check, args=arguments, daemon=True)
            thread.start()
            yield (
                markup.note("Waiting for the device; a generation that is running ends first."),
                gr.update(visible=False),
                running,
            )
            while (text := said.get()) is not None:
                yield markup.note(f"Checking {text} …"), gr.update(), running
            thread.join()
        finally:
            self._turn.release()
        result = found[0]
        if isinstance(result, VAEGuardError):
            yield markup.note(str(result), "bad"), gr.update(), over
            return
        verdict = " ".join(filter(None, [result.verdict, result.remark]))
        table = markup.note(verdict, "bad" if result.is_wrong else "") + _table(result)
        yield table, gr.update(value=result.text(), visible=True), over

    def _budget(self, device: torch.device) -> int:
        usable = self._backend.memory(device).usable
        return FIRST_PROMISE if usable is None else usable

    def _check(
        self, operation: Operation, compute: Compute, said: queue.SimpleQueue[str | None], found: list[Any]
    ) -> None:
        try:
            with self._backend.computing():
                vae = sample_network(operation.half).to(compute.device, compute.dtype)
                limits = Limits(budget=self._budget)
                found.append(check(vae, operation, compute, limits, said.put))
        except VAEGuardError as error:
            found.append(error)
        except (RuntimeError, MemoryError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            found.append(
                VAEGuardError(
                    f"The check could not be run on {compute.device}: {text} Free some memory, or check the CPU."
                )
            )
        finally:
            said.put(None)


def _table(report: Report) -> str:
    head, *found = report.rows()
    body: list[list[markup.Cell]] = []
    for size, route, *numbers in ([html.escape(cell) for cell in row] for row in found):
        begins = [(f"<b>{size}</b>", ""), (markup.sentence(route), "vg-wide")]
        if any(numbers[1:]):
            body.append([*begins, *((number, "vg-num") for number in numbers)])
        else:  # why it failed
            body.append([*begins, (f'<span class="vg-bad-text">{numbers[0]}</span>', "vg-wide")])
    return markup.table(head, body, is_broad=True)
