"""The command line: only flags that an extension may look at."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser("host double")
parser.add_argument("--data-dir", default=os.environ.get("HOST_DOUBLE_DATA") or None)
parser.add_argument("--port", type=int, default=7861)
parser.add_argument("--use-cpu", nargs="+", default=[])
for name in ("vae-path", "vae-dir", "ckpt-dir", "api-auth", "gradio-auth", "device-id", "subpath", "theme"):
    parser.add_argument(f"--{name}", default=None)
FLAGS = (
    "api nowebui no-half no-half-vae medvram medvram-sdxl lowvram disable-nan-check freeze-settings "
    "skip-load-model-at-start disable-safe-unpickle gradio-debug listen share hide-ui-dir-config"
)
for name in FLAGS.split():
    parser.add_argument(f"--{name}", action="store_true")

is_main = Path(sys.argv[0]).name == "webui.py"
cmd_opts, _unknown = parser.parse_known_args(sys.argv[1:] if is_main else ["--use-cpu", "all", "--no-half"])
if cmd_opts.data_dir is None:
    cmd_opts.data_dir = tempfile.mkdtemp(prefix="host-double-")
cmd_opts.ui_settings_file = str(Path(cmd_opts.data_dir) / "config.json")
