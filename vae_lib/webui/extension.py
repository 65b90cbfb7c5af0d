"""Start and stop: what the host's loading and unloading of the script come to."""

from __future__ import annotations

from vae_lib.webui import api, downloads, hooks, kept, lost_pages, notices, options, tab, vae_files, xyz

_running = False


def start(root: str) -> None:
    """Patch the host and register the callbacks; called once each time the host loads the extension's script."""
    from modules import script_callbacks

    global _running
    _running = True
    hooks.install()
    kept.restore()
    api.install()
    vae_files.install()
    script_callbacks.on_ui_settings(options.add_to_settings)
    script_callbacks.on_ui_settings(downloads.add_to_settings)
    script_callbacks.on_ui_tabs(tab.build)
    script_callbacks.on_model_loaded(downloads.get_taesd_for)
    script_callbacks.on_before_ui(xyz.add_axes)
    script_callbacks.on_app_started(lost_pages.let_go)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_app_started(downloads.add_routes)
    script_callbacks.on_script_unloaded(stop)
    notices.log.debug("loaded from %s", root)


def stop() -> None:
    """Undo every patch; harmless when there is none."""
    global _running
    if not _running:
        return
    _running = False
    hooks.undo_all()
    kept.clear()
    downloads.close()
