"""The command line: decode, encode, inspect, plan, check, demo and what other parts of the package add."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from vae_lib.cli.parser import build_parser
from vae_lib.errors import VAEGuardError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0; 1 for a failure, reported in one sentence; 2 for bad use (argparse's own)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows' code pages lack letters that file names have
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options) or 0
    except VAEGuardError as error:
        print(f"vae_lib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vae_lib: stopped; nothing was written.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has left
        sys.stderr.close()
        return 0
    return code
