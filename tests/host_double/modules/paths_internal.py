from pathlib import Path

from modules.shared_cmd_options import cmd_opts

script_path = str(Path(__file__).resolve().parent.parent)
data_path = str(Path(cmd_opts.data_dir).resolve())
models_path = str(Path(data_path, "models"))
extensions_dir = str(Path(data_path, "extensions"))
extensions_builtin_dir = str(Path(script_path, "extensions-builtin"))
for folder in (extensions_dir, f"{models_path}/Stable-diffusion", f"{models_path}/VAE"):
    Path(folder).mkdir(parents=True, exist_ok=True)
