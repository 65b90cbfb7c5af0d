"""Fuzz the readers of weights files: ``python -m tools.fuzz --minutes 5``.

Starts from the corpus and a few sound files. With atheris installed the search is guided by the lines that an
input reaches; without it, inputs are mutated at random, from ``--seed``. An input that does not end in a
sentence, that takes more than a few seconds or that runs its code is saved, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import re
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None
guided = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["vae_lib", "pickletools"]) if guided else contextlib.nullcontext():
    import torch

    from tests.checkpoints import corpus, examine

MOST_BYTES = 20_000  # larger seeds only slow the search down
SECONDS = 5.0
_TOKENS = (
    *(struct.pack("<Q", number) for number in (0, 1, 2**31, 2**32, 2**63, 2**64 - 1)),
    *(str(number).encode() for number in (-1, 0, 2**31, 2**63, 1e308)),
    *(b"null", b"[]", b"{}", b'""', b"NaN", b'"F4"', b"__metadata__", b"decoder.up.0.block.0.conv1.weight"),
    *(b"(", b"t", b"R", b"Q", b"b", b"s", b"u", b"}", b"]", b"h\0", b"q\0", b"\x85", b"\x86", b"."),
    *(corpus.named(*name) for name in (("torch", "Tensor"), ("torch", "Size"), ("_codecs", "encode"))),
)


@dataclass
class Fuzzer:
    """Tries inputs and keeps count; ``crashes`` are the paths of saved inputs, with what came of them."""

    folder: Path
    canary: Path
    tried: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    crashes: dict[Path, str] = field(default_factory=dict)

    def try_one(self, data: bytes) -> None:
        """Read the bytes as a VAE; what must not happen is kept."""
        self.tried += 1
        path = self.folder / "input.ckpt"
        path.write_bytes(as_file(data))
        start = time.process_time()
        said = examine.outcome(examine.load_vae, path)
        if self.canary.exists():
            said = f"{examine.CRASH} its code ran"
            self.canary.unlink()
        elif time.process_time() - start > SECONDS:
            said = f"{examine.CRASH} it took more than {SECONDS:g} s"
        elif not said.isprintable() or len(said) > 700:
            said = f"{examine.CRASH} a sentence that cannot be shown: {said[:200]!r}"
        kind = re.sub(r"'.*'|\".*\"|\(.*\)|\d+", "…", said)
        self.outcomes[kind] += 1
        if said.startswith(examine.CRASH) and self.outcomes[kind] == 1:
            saved = self.folder / f"crash-{len(self.crashes)}.bin"
            path.replace(saved)
            self.crashes[saved] = said

    def report(self) -> str:
        lines = [f"{self.tried} inputs, {len(self.outcomes)} kinds of outcome, {len(self.crashes)} crashes"]
        lines += [f"{count:8} {kind[:150]}" for kind, count in self.outcomes.most_common()]
        lines += [f"{path}: {said[:300]}" for path, said in self.crashes.items()]
        return "\n".join(lines)


def as_file(data: bytes) -> bytes:
    """The bytes, or after one of the first three bytes a sound container of them, which chance rarely makes."""
    kind, rest = data[:1], data[1:]
    if kind == b"\0":
        return corpus.safetensors(rest, bytes(8))
    if kind == b"\1":
        return corpus.zipped(rest)
    if kind == b"\2":
        return corpus.legacy(rest, ["0"], struct.pack("<Q", 1) + bytes(4))
    return data


def seeds(canary: Path) -> list[bytes]:
    """The corpus, but what is large, sound files of each format, and what is in them, for ``as_file``."""
    whole = list(corpus.contents(canary).values())
    header = {"decoder.conv_in.weight": corpus.tensor_entry("F32", (1, 2)), "__metadata__": {"a": "b"}}
    whole.append(corpus.safetensors(header, bytes(8)))
    for is_zip in (True, False):
        buffer = io.BytesIO()
        weights = {"state_dict": {"decoder.conv_in.weight": torch.nn.Parameter(torch.ones(2, 2))}}
        torch.save(weights, buffer, _use_new_zipfile_serialization=is_zip)
        whole.append(buffer.getvalue())
    inner = [b"\0" + content[8:] for content in whole if content[8:9] == b"{"]
    for content in whole:
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
            inner += [
                kind + archive.read(entry)
                for entry in archive.infolist()
                if entry.filename.endswith("data.pkl") and entry.compress_type == zipfile.ZIP_STORED
                for kind in (b"\1", b"\2")
            ]
    return [content for content in whole + inner if 0 < len(content) <= MOST_BYTES]


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The bytes with a few changes: bits, numbers, words of the formats, pieces cut, repeated or of another."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 1, 4, 16, 64)))
        other = chance.choice(others)
        begin = chance.randrange(len(other) + 1)
        changed[at:end] = chance.choice(
            (
                chance.randbytes(end - at),
                chance.choice(_TOKENS),
                chance.choice(_TOKENS) + changed[at:end],
                b"",
                changed[at:end] * 2,
                other[begin : begin + 64],
            )
        )
    return bytes(changed[:MOST_BYTES])


def run(fuzzer: Fuzzer, more: Callable[[], bool], seed: int = 0) -> None:
    """Mutate at random while ``more()``."""
    chance, starts = random.Random(seed), seeds(fuzzer.canary)
    while more():
        fuzzer.try_one(mutated(chance.choice(starts), starts, chance))


def run_guided(fuzzer: Fuzzer, minutes: float, seed: int) -> None:
    """Let atheris choose the inputs; it ends the process."""
    starts = fuzzer.folder / "seeds"
    starts.mkdir()
    for index, content in enumerate(seeds(fuzzer.canary)):
        (starts / str(index)).write_bytes(content)
    deadline = time.monotonic() + 60 * minutes

    def target(data: bytes) -> None:
        if time.monotonic() < deadline:
            fuzzer.try_one(data)
        else:
            finish(fuzzer)

    flags = (
        f"-seed={seed + 1}",
        f"-max_len={MOST_BYTES}",
        "-timeout=30",
        f"-artifact_prefix={fuzzer.folder}/",
    )
    atheris.Setup([sys.argv[0], "-verbosity=0", *flags, str(starts)], target)
    atheris.Fuzz()


def finish(fuzzer: Fuzzer) -> None:
    """Print the figures, and end the process whatever atheris has in mind."""
    print(fuzzer.report(), flush=True)
    os._exit(1 if fuzzer.crashes else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="do not use atheris")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="vae-guard-fuzz-"))
    print(
        f"Inputs that fail are kept in {folder}; one that ends the process is its input.ckpt.",
        flush=True,
    )
    fuzzer = Fuzzer(folder, folder / "it ran")
    if guided and not options.random:
        run_guided(fuzzer, options.minutes, options.seed)
    examine.limit_memory()
    deadline = time.monotonic() + 60 * options.minutes
    run(fuzzer, lambda: time.monotonic() < deadline, options.seed)
    finish(fuzzer)


if __name__ == "__main__":
    main()
