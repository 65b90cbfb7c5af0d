"""The page's generations run in another thread than the page's, and what they fail of is only printed."""

import threading
import traceback


def run_and_wait_result(func, *args, **kwargs):
    results = [None]

    def work():
        try:
            results[0] = func(*args, **kwargs)
        except Exception:
            traceback.print_exc()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]
