from page_thread import run_and_wait_result  # noqa: F401
