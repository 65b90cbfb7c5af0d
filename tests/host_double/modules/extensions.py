import configparser
from pathlib import Path

from modules import scripts, shared
from modules.paths_internal import extensions_builtin_dir, extensions_dir

extensions: list = []
extension_paths: dict = {}


class Extension:
    remote = None

    def __init__(self, path, is_builtin=False):
        self.name, self.path, self.is_builtin = path.name, str(path), is_builtin
        self.enabled = path.name not in shared.opts.disabled_extensions
        metadata = configparser.ConfigParser()
        metadata.read(path / "metadata.ini")
        self.canonical_name = metadata.get("Extension", "Name", fallback=path.name).strip().lower()

    def list_files(self, subdir, extension):
        folder = Path(self.path, subdir)
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() == extension) if folder.is_dir() else []
        return [scripts.ScriptFile(self.path, p.name, str(p)) for p in files if p.is_file()]


def list_extensions():
    extensions.clear()
    for folder in (extensions_builtin_dir, extensions_dir):
        for path in sorted(Path(folder).iterdir()):
            if path.is_dir():
                extensions.append(Extension(path, folder == extensions_builtin_dir))


def active():
    return [extension for extension in extensions if extension.enabled]


def find_extension(filename):
    folders = Path(filename).absolute().parents
    return next((extension for extension in extensions if Path(extension.path) in folders), None)
