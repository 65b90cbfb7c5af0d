import functools
import html
import threading
import time
import traceback

from modules import shared

queue_lock = threading.Lock()


def wrap_queued_call(func):
    @functools.wraps(func)
    def queued(*args, **kwargs):
        with queue_lock:
            return func(*args, **kwargs)

    return queued


def wrap_gradio_gpu_call(func, extra_outputs=None):
    @functools.wraps(func)
    def running(*args, **kwargs):
        with queue_lock:
            shared.state.begin(job=str(args[0]) if args else "")
            try:
                return func(*args, **kwargs)
            finally:
                shared.state.end()

    return wrap_gradio_call(running, extra_outputs=extra_outputs, add_stats=True)


def wrap_gradio_call(func, extra_outputs=None, add_stats=False):
    """Failures become a line in the last output (the log under the gallery)."""

    @functools.wraps(func)
    def told(*args, **kwargs):
        start = time.perf_counter()
        try:
            result = list(func(*args, **kwargs))
        except Exception as error:
            traceback.print_exc()
            text = html.escape(f"{type(error).__name__}: {error}")
            result = [*(extra_outputs or [None, ""]), f"<div class='error'>{text}</div>"]
        shared.state.skipped = shared.state.interrupted = shared.state.stopping_generation = False
        if add_stats:
            seconds = time.perf_counter() - start
            result[-1] += f"<div class='performance'><p class='time'>Time taken: {seconds:.1f} sec.</p></div>"
        return tuple(result)

    return told
