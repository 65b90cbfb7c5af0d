"""A report of an error of ours, ready to copy: no prompt, and of paths only what lies inside a package."""

from __future__ import annotations

import os
import platform
import re
import traceback
from pathlib import Path
from typing import Any

import torch

_ROOT = r"(?:[A-Za-z]:[\\/]|\\\\|/)(?=\S)"  # of a drive, a network share, or all there is
_QUOTED_PATH = re.compile(rf"""(['"]){_ROOT}(?:(?!\1).)*\1|<{_ROOT}[^>\n]*>""")
# Where it ends is not known: up to what stands behind a path in a sentence, for folders have blanks in their names.
_BARE_PATH = re.compile(rf"(?<![\w.~/\\]){_ROOT}(?:(?![:;,] ).)*")


def text(error: BaseException, operation: str, shape: tuple[int, ...], vae: Any) -> str:
    """What a developer needs: versions, the VAE's dtype and device, the size, where it happened."""
    import vae_lib

    weight = next(vae.parameters(), None)
    numbers = "without weights" if weight is None else f"{weight.dtype} on {weight.device}"
    lines = [
        "--- VAE Guard: report (copy from here)",
        f"VAE Guard {vae_lib.__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{platform.system()}",
        f"{operation} of {shape}, {type(vae).__name__} {numbers}",
        *(
            f"  {_short(frame.filename)}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ),
        _without_paths(f"{type(error).__name__}: {error}"),
        "--- to here",
    ]
    return "\n".join(lines)


def _without_paths(message: str) -> str:
    home = os.path.expanduser("~")
    unquoted = _QUOTED_PATH.sub("<path>", message).replace(home if len(home) > 1 else "~", "~")
    return _BARE_PATH.sub("<path>", unquoted)


def _short(filename: str) -> str:
    """The path inside the package, so that the folder's name, which may be the user's, stays out."""
    parts = Path(filename).parts
    for anchor in ("vae_lib", "site-packages", "modules"):
        if anchor in parts:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(anchor) :])
    return parts[-1] if parts else "?"
