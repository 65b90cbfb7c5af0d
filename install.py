"""Runs at every start of the WebUI: adds the packages that are missing, and moves no version of any other."""

import importlib.util
import subprocess
import sys


def missing_packages():
    """What pip is to be given; empty when there is nothing to do. Only looks, imports nothing."""
    wanted = {"huggingface_hub": "huggingface_hub>=0.16"}
    if sys.version_info < (3, 11):
        wanted["tomli"] = "tomli>=2"
    return [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]


def main():
    missing = missing_packages()
    if not missing:
        return
    names = ", ".join(missing)
    # "only-if-needed" leaves every installed package that satisfies the requirement at its version.
    command = [sys.executable, "-m", "pip", "install", "--upgrade-strategy", "only-if-needed"]
    command += ["--disable-pip-version-check", "--prefer-binary", *missing]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except OSError as error:
        problem = [str(error)]
    if problem:
        print(
            f"VAE Guard: could not install {names} ({problem[0]}). Decoding works without; "
            f"for downloads run: {sys.executable} -m pip install {' '.join(missing)}"
        )
    else:
        print(f"VAE Guard: installed {names}")


main()
