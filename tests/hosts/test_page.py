"""Notices reach the page from the thread in which a fork generates, by gradio 3's ways and by 4's."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

gradio = pytest.importorskip("gradio")
from gradio import context  # noqa: E402

from vae_lib.hosts import page  # noqa: E402

Shown = list[tuple[str, str]]


@pytest.fixture(params=[3, 4])
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Marks this thread as one that handles an event of a page."""
    if request.param == 3:
        monkeypatch.delattr(context, "LocalContext", raising=False)
        monkeypatch.setattr(context, "thread_data", threading.local(), raising=False)
        return lambda event: vars(context.thread_data).update(blocks="a page", event_id=event)
    local: Any = SimpleNamespace(event_id=contextvars.ContextVar("event_id", default=None))
    monkeypatch.setattr(context, "LocalContext", local, raising=False)
    return local.event_id.set  # type: ignore[no-any-return]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """The notices, and of which event gradio would have taken them to be."""
    notices: Shown = []

    def note(message: str) -> None:
        if hasattr(context, "LocalContext"):
            notices.append((context.LocalContext.event_id.get(), message))
        else:
            notices.append((context.thread_data.event_id, message))

    for kind in ("Warning", "Info"):
        monkeypatch.setattr(gradio, kind, note)
    return notices


def in_another_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_notice_is_a_text_and_no_markup(serve: Callable[[str], None], shown: Shown) -> None:
    def told() -> None:
        serve("an event")
        page.notify("'a' & <img src=x>", warning=True)

    contextvars.copy_context().run(told)
    escaped = "'a' &amp; &lt;img src=x&gt;"  # gradio 3 shows texts as they are
    assert shown[0][1] == (escaped if hasattr(context, "LocalContext") else "'a' & <img src=x>")


def test_a_notice_reaches_the_page_of_the_event(serve: Callable[[str], None], shown: Shown) -> None:
    page.notify("nobody is there", warning=True)
    context_of_the_test = contextvars.copy_context()
    context_of_the_test.run(serve, "an event")
    context_of_the_test.run(lambda: page.notify("here", warning=False))
    in_another_thread(lambda: page.notify("not from elsewhere", warning=True))
    assert shown == [("an event", "here")]


def test_it_is_carried_to_the_thread_that_generates(serve: Callable[[str], None], shown: Shown) -> None:
    def generate(text: str, *, fails: bool = False) -> str:
        page.notify(text, warning=True)
        if fails:
            raise ZeroDivisionError
        return text.upper()

    def event() -> Callable[..., str]:
        serve("an event")
        return page.carried(generate)

    carried: list[Callable[..., str]] = []
    in_another_thread(lambda: carried.append(contextvars.copy_context().run(event)))
    (function,) = carried
    assert function("from the main thread") == "FROM THE MAIN THREAD"
    assert shown == [("an event", "from the main thread")]
    with pytest.raises(ZeroDivisionError):
        function("and fails", fails=True)
    page.notify("the thread is nobody's again", warning=True)
    assert len(shown) == 2
