import importlib.util
import os

loaded_scripts: dict = {}


def load_module(path):
    """Run a script by its path, anew each time, without entering it into sys.modules (as the host does)."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded_scripts[path] = module
    return module
