"""What the WebUI loads: puts this extension's ``vae_lib`` in place, fresh, and exposes its Script."""

import importlib
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)


def _load():
    """Import vae_lib from this folder, whatever its name, in place of one loaded before (Reload UI)."""
    previous = sys.modules.get("vae_lib.webui")
    if previous is not None and hasattr(previous, "stop"):
        previous.stop()
    for name in [name for name in sys.modules if name == "vae_lib" or name.startswith("vae_lib.")]:
        del sys.modules[name]
    sys.path.insert(0, ROOT)
    try:
        return importlib.import_module("vae_lib.hosts"), importlib.import_module("vae_lib.webui")
    finally:
        sys.path.remove(ROOT)


hosts, webui = _load()
VAEGuardScript = webui.start(hosts.choose(), hosts.instead_of)
