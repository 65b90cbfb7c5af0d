import sys
import traceback


def report(message: str, *, exc_info: bool = False) -> None:
    print(*("*** " + line for line in message.splitlines()), sep="\n", file=sys.stderr)
    if exc_info:
        print(traceback.format_exc(), file=sys.stderr)


def print_error_explanation(message: str) -> None:
    print("=" * 40, message, "=" * 40, sep="\n", file=sys.stderr)


def display(e: Exception, task, *, full_traceback: bool = False) -> None:
    print(f"{task or 'error'}: {type(e).__name__}", file=sys.stderr)
    traceback.print_exception(type(e), e, e.__traceback__, file=sys.stderr)


def run(code, task) -> None:
    try:
        code()
    except Exception as error:
        display(error, task)
