"""What the WebUI loads: puts this extension's ``vae_lib`` in place, fresh, and exposes its Script."""

import importlib
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # links kept: each is a copy to the WebUI


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


running = sys.modules.get("vae_lib.webui")
if running is not None and getattr(running, "running_folder", lambda: None)() not in (None, ROOT):
    running.report_second_copy(ROOT)
else:
    hosts, webui = _load()
    VAEGuardScript = webui.start(hosts.choose(), hosts.instead_of)
