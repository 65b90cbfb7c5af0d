"""The host double: `python webui.py --data-dir DIR --port N --api` serves the page and the API until killed."""

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from modules import call_queue, devices, extensions, script_callbacks, scripts, sd_models, sd_vae, shared, ui
from modules.api.api import Api


def initialize_rest():
    extensions.list_extensions()
    sd_models.list_models()
    scripts.load_scripts()
    sd_vae.refresh_vae_list()
    threading.Thread(target=lambda: shared.sd_model).start()


def serve():
    script_callbacks.before_ui_callback()
    shared.demo = ui.create_ui()
    shared.demo.queue(64)
    app, _, _ = shared.demo.launch(
        server_name="127.0.0.1",
        server_port=shared.cmd_opts.port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        allowed_paths=[shared.data_path, shared.script_path],
    )
    app.user_middleware = [x for x in app.user_middleware if x.cls.__name__ != "CORSMiddleware"]
    app.middleware_stack = None  # so that middleware can still be added
    Api(app, call_queue.queue_lock)
    script_callbacks.app_started_callback(shared.demo, app)
    app.middleware_stack = app.build_middleware_stack()
    print("Startup time: done", flush=True)


def main():
    print(f"Running on {devices.device}")
    queued = call_queue.wrap_queued_call
    shared.opts.onchange("sd_vae", queued(lambda: sd_vae.reload_vae_weights()), call=False)
    shared.opts.onchange("sd_model_checkpoint", queued(lambda: sd_models.reload_model_weights()), call=False)
    initialize_rest()
    while True:
        serve()
        while not (command := shared.state.wait_for_server_command(timeout=5)):
            pass
        shared.demo.close()
        if command == "stop":
            return
        print("Restarting UI...", flush=True)
        time.sleep(0.1)
        script_callbacks.app_reload_callback()
        script_callbacks.script_unloaded_callback()
        initialize_rest()


if __name__ == "__main__":
    main()
