"""The page's generations run in another thread than the page's."""

import threading


def run_and_wait_result(func, *args, **kwargs):
    results = []
    thread = threading.Thread(target=lambda: results.append(func(*args, **kwargs)))
    thread.start()
    thread.join()
    return results[0]
