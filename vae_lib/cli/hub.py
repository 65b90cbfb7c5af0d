"""The commands that download."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap

from tqdm import tqdm

from vae_lib.errors import InputError
from vae_lib.files import require_folder
from vae_lib.hub import AmbiguousReference, Progress, load_catalog, pull
from vae_lib.units import size_text


def run_pull(options: argparse.Namespace) -> None:
    for folder in (options.folder, options.taesd_folder):
        if folder is not None:
            require_folder(folder, "make it first")
    bar = tqdm(delay=1, leave=False, unit="B", unit_scale=True, file=sys.stderr, disable=None)

    def show(progress: Progress) -> None:
        bar.total = progress.total
        bar.set_description_str(progress.stage, refresh=False)
        if progress.done >= bar.n:
            bar.update(progress.done - bar.n)
        else:
            bar.reset(progress.total)

    try:
        file = pull(
            options.reference, options.folder, taesd_folder=options.taesd_folder, allow_pickle=options.allow_pickle,
            on_conflict="rename" if options.rename else "ask", progress=show,
        )  # fmt: skip
    except AmbiguousReference as error:
        choices = "".join(f"\n  {reference}" for reference in error.candidates)
        raise InputError(f"{error}{choices}") from error
    finally:
        bar.close()
    if options.json:
        described = {
            "path": str(file.path), "sha256": file.sha256, "verified_by": file.verified_by,
            "bytes_fetched": file.bytes_fetched, "resumed_from": file.resumed_from,
            "also": [str(path) for path in file.also],
            "family": None if file.identity is None else file.identity.family_name,
        }  # fmt: skip
        print(json.dumps(described))
        return
    how = f"{size_text(file.bytes_fetched)} fetched" if file.bytes_fetched else "already there"
    family = "" if file.identity is None else f", {file.identity.family_name}"
    verified = {
        "SHA-256": f"verified (SHA-256 {file.sha256[:10]})",
        "git SHA-1": f"verified (git SHA-1; SHA-256 {file.sha256[:10]})",
    }.get(file.verified_by or "", f"not verified, as the hub gave no hash (SHA-256 {file.sha256[:10]})")
    print(f"{file.path}: {how}, {verified}{family}.")
    for path in file.also:
        print(f"{path}: for the WebUI's own TAESD option.")


def run_catalog(options: argparse.Namespace) -> None:
    entries = load_catalog().entries
    if options.json:
        keys = "id title family kind repository file licence size sha256 gated pickle purpose"
        print(json.dumps([{key: getattr(entry, key) for key in keys.split()} for entry in entries]))
        return
    for entry in entries:
        size = "size unknown" if entry.size is None else size_text(entry.size)
        print(f"{entry.id}  ({entry.family}, {size}, {entry.licence}{', gated' if entry.gated else ''})")
        print(textwrap.indent(textwrap.fill(entry.purpose, 100), "    "))
