"""The benchmarks run, and what they say is right."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import capped, compare, dispatch, floors, peers, report, short, suite, systems, worker
from benchmarks.cap import Cap
from benchmarks.systems import AUTOMATIC
from benchmarks.workload import Job
from tests.planning.plans import candidates, choose
from vae_lib.engine import Operation
from vae_lib.planning import Route, Work

pytest.importorskip("diffusers", reason="diffusers is not installed")

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def test_compare(tmp_path: Path) -> None:
    output = tmp_path / "new" / "x.json"
    words = ["diffusers full", "ours tiled, smallest"]
    arguments = shlex.split("--shapes bundled --sizes 64 128 --rounds 2")
    compare.main([*arguments, "--systems", *words, "-o", str(output)])
    records = json.loads(output.read_text())["records"]
    assert [(r["system"], r["size"]) for r in records] == [(name, size) for size in (64, 128) for name in words]
    for record in records:
        assert record["max_error"] < 2e-5
        assert record["psnr"] > 100
        assert 0 < record["spread"][0] <= record["seconds"] <= record["spread"][1]
    theirs, ours = records[2:]
    assert ours["peak_bytes"] < theirs["peak_bytes"] / 2
    names = {path.name for path in output.parent.iterdir()}
    assert {"x.json", "x.md"} <= names
    assert names <= {"x.json", "x.md", "x.png", "x-growth.png"}  # plots where matplotlib is installed


def test_jobs_measured_again_replace_their_figures_on_the_same_machine_only() -> None:
    def result(date: str, *sizes: int, device: str = "x") -> dict[str, Any]:
        job = {"shape": "sd", "dtype": "fp32", "batch": 1}
        records = [job | {"size": size, "system": date} for size in sizes]
        return {"machine": {"device": device, "date": date}, "records": records}

    joined = report.replace_jobs(result("old", 512, 1024), result("new", 2048, 512, 512))
    assert joined["machine"]["date"] == "new"
    assert [(r["size"], r["system"]) for r in joined["records"]] == [
        (512, "new"), (512, "new"), (1024, "old"), (2048, "new"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="another machine"):
        report.replace_jobs(result("old", 512), result("new", 512, device="y"))


def test_table_and_ratios() -> None:
    base: dict[str, Any] = {
        "shape": "sd", "dtype": "fp16", "size": 512, "batch": 4, "system": "diffusers full", "seconds": 2.0,
        "spread": [1.0, 3.0], "cpu_seconds": 4.0, "peak_bytes": 2 << 20, "max_error": None, "psnr": None,
    }  # fmt: skip
    other = base | {
        "system": "ours full",
        "cpu_seconds": 1.0,
        "peak_bytes": 1 << 20,
        "max_error": 1e-5,
        "psnr": 99.6,
    }
    lost = {name: base[name] for name in ("shape", "dtype", "size", "batch")}
    machine = {"device": "x", "decoder": "cpu", "cores": 1, "threads": 1, "torch": "2", "date": "today"}
    table = report.table(
        {
            "machine": machine,
            "records": [
                base,
                other,
                lost | {"system": "ldm", "problem": "out of memory"},
                other | {"system": "timed only", "peak_bytes": None, "max_error": None, "psnr": None},
            ],
        }
    )
    lines = table.splitlines()[-4:]
    what = "| sd 512x512 fp16 x4 |"
    assert lines[0] == f"{what} diffusers full | 2.00 s (1.00-3.00) | 4.00 s | 1.00 | 2 MiB | 1.00 | - | - |"
    assert lines[1] == f"{what} ours full | 2.00 s (1.00-3.00) | 1.00 s | 0.25 | 1 MiB | 0.50 | 1.0e-05 | 100 dB |"
    assert lines[2] == f"{what} ldm | out of memory | - | - | - | - | - | - |"
    assert lines[3] == f"{what} timed only | 2.00 s (1.00-3.00) | 1.00 s | 0.25 | - | - | - | - |"


def test_a_cap_is_survived_by_ours_only(tmp_path: Path) -> None:
    output = tmp_path / "capped.json"
    arguments = shlex.split(
        "--device cpu --shape bundled --dtype fp32 --rounds 1 --sizes 64 256 --caps 0.09 --ballast 0.04"
    )
    capped.main([*arguments, "--systems", "diffusers full", AUTOMATIC, "-o", str(output)])
    records = json.loads(output.read_text())["records"]
    survived = {(r["system"], r["size"]): r.get("problem", "yes") for r in records}
    assert survived == {
        ("diffusers full", 64): "yes",
        ("diffusers full", 256): "out of memory",
        (AUTOMATIC, 64): "yes",
        (AUTOMATIC, 256): "yes",
    }
    assert "| 0.09 GB (0.04) | diffusers full | yes | - |" in output.with_suffix(".md").read_text()


def test_the_cap_counts_what_is_alive() -> None:
    cap = Cap(CPU, 3000, 1000)
    with cap:
        kept = [torch.zeros(100)]
        assert cap.free() == 1600
        kept.clear()
        assert cap.free() == 2000
        kept.append(torch.zeros(400))
    with cap, pytest.raises(torch.cuda.OutOfMemoryError):
        torch.zeros(200)
    assert cap.free() == 400
    torch.zeros(10_000)  # outside


def test_the_floor_counts_as_pytorch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(2, 3)).softmax(3) @ v  # the counter does not know every fused kernel

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    vae = Job("bundled", "fp32", 64, 1).vae()
    needed, traffic = floors.least(vae, 64, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.zeros(1, 4, 8, 8))
    assert 2 * needed == counter.get_total_flops()
    assert traffic > 3 * 64 * 64 * 4


def test_floors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(floors, "best_rates", lambda device, dtype: (1e9, 1e9))
    output = tmp_path / "floors.json"
    floors.main(["--shape", "bundled", "--sizes", "64", "--device", "cpu", "--rounds", "1", "-o", str(output)])
    (record,) = json.loads(output.read_text())["records"]
    assert record["floor"] == record["multiplications"] / 1e9
    assert record["measured"] > 0
    assert "| 64x64 |" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_suite_gives_arguments_that_its_benchmarks_take(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(parser: Any, arguments: list[str]) -> Any:
        parse(parser, arguments)
        raise KeyboardInterrupt

    suite.main(["--device", device, "--list"])
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(suite.CPU if device == "cpu" else suite.GPU)
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for command in commands:
        module, *arguments = shlex.split(command)[2:]
        with pytest.raises(KeyboardInterrupt):  # SystemExit if they were not taken
            suite.MAINS[module.removeprefix("benchmarks.")](arguments)


def test_dispatches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MOST", 3000)
    monkeypatch.setattr(peers, "ldm", missing_ldm)
    output = tmp_path / "new" / "dispatch.json"
    dispatch.main(["--shape", "bundled", "--sizes", "128", "256", "--json", str(output)])
    records = json.loads(output.read_text())["records"]
    found = {(r["system"], r["size"]): r for r in records}
    assert len(found) == len(records) == 2 * 7  # ldm is left out
    for size in (128, 256):
        theirs, plain, whole = (found[name, size] for name in ("diffusers full", "plain network", "ours full, whole"))
        assert plain["dispatches"] < theirs["dispatches"] < whole["dispatches"]
        assert whole["peak_bytes"] < plain["peak_bytes"] < 1.1 * theirs["peak_bytes"]
    planned = [r for r in records if r["counted"] == dispatch.PLANNED]
    assert {r["system"] for r in planned} == {"ours tiled, smallest"}
    for record in records:
        if record["counted"] == dispatch.RUN:
            assert 0 < record["kernels"] < record["dispatches"]
            assert record["seconds"] > 0
        if "planned_dispatches" in record and "offload" not in record["system"]:
            assert record["planned_dispatches"] == record["dispatches"]
    table = output.with_suffix(".md").read_text()
    whole = found["ours full, whole", 256]
    assert f"| 256x256 | ours full, whole | {whole['dispatches']} | {whole['kernels']} |" in table


def missing_ldm(*_: Any) -> Any:
    raise peers.Missing("ldm is not there")


def test_views_and_allocations_are_no_kernels() -> None:
    x = torch.ones(2, 3)
    with dispatch.Dispatches() as counted:
        y = x.t().unsqueeze(0).view(1, 3, 2)[0]
        torch.empty_like(y), y.new_empty(3), y.split(1), y.unbind(), y.expand(2, 3, 2)
        assert counted.kernels == 0
        y.add_(1), torch.add(y, y), torch.zeros(2), torch.add(y, y, out=torch.empty(3, 2))
    assert counted.kernels == 4
    assert counted.count > 12


def test_more_may_be_offloaded_to_main_memory_than_lies_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ladder(vae: Any, *, planner: Any, **_: Any) -> Any:
        nonlocal free
        free = planner.memory

    free: Any = None
    monkeypatch.setattr(systems, "Ladder", ladder)
    vae, cuda = Job("bundled", "fp16", 512, 1).vae(), torch.device("cuda")
    work = Work(vae.config, Operation.DECODE, 64, 64, 1, cuda, torch.float16)
    plan = min(candidates(work, Route.OFFLOAD), key=lambda plan: plan.peak_bytes)
    assert plan.host_bytes > plan.peak_bytes
    systems.by_plan(vae, systems.Place(cuda, torch.float16), plan)
    chosen = choose(work, free(cuda), order=(Route.OFFLOAD,), cpu_free=free(CPU))
    assert chosen.tiling == plan.tiling


def test_a_cap_on_the_device_is_none_on_main_memory() -> None:
    cuda = torch.device("cuda")
    server = worker._Server(systems.plain, cuda)
    server.limits = SimpleNamespace(free=lambda: 123)  # type: ignore[assignment]
    assert server._free(cuda) == 123
    assert server._free(CPU) > 1 << 20


def test_the_short_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "SHARES", (1.0, 0.5, 0.01))
    small_card = ["--cap", "0.06", "--ballast", "0.02", "--capped-size", "128"]
    suite.main(
        ["--device", "cpu", "--minutes", "5", "-o", str(tmp_path), "--shape", "bundled", "--sizes", "96", *small_card]
    )  # fmt: skip
    result = json.loads((tmp_path / "cpu-short.json").read_text())
    systems = {record["system"]: record for record in result["systems"]}
    assert [name for name in systems if name != "ldm full"] == ["diffusers full", *short.OURS]
    assert ("ldm full" in systems) != any("ldm full" in left for left in result["left_out"])
    *plans, hopeless = result["plans"]
    assert [record["share"] for record in plans] == [1.0, 0.5]
    assert hopeless["problem"] == "out of memory"
    assert [record["system"] for record in result["capped"]] == [AUTOMATIC, short.TILED_PEER]
    for record in [*systems.values(), *plans, *result["capped"]]:
        assert "problem" not in record
        assert 0 < record["spread"][0] <= record["seconds"] <= record["spread"][1]
        assert record["max_error"] < 2e-5
        if "predicted_peak_bytes" in record:
            assert record["peak_bytes"] <= record["predicted_peak_bytes"] <= 1.1 * record["peak_bytes"]
    assert systems["ours tiled, smallest"]["peak_bytes"] < systems["diffusers full"]["peak_bytes"]
    table = (tmp_path / "cpu-short.md").read_text()
    assert "| 96x96 | ours offload (tiled + RAM in " in table
    assert "| 96x96 | 0.01 | - | out of memory |" in table
    assert f"| 128x128 | 0.06 GB | {AUTOMATIC} |" in table


def test_a_short_suite_that_is_cut_off_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_all_the_time(self: Any, name: str, side: int) -> dict[str, Any]:
        if name == "ldm full":
            raise RuntimeError("a defect")
        if name == "diffusers full":
            raise peers.Missing("diffusers is not installed")
        self._end = 0.0
        return system(self, name, side)

    system = short._Short._system
    monkeypatch.setattr(short._Short, "_system", takes_all_the_time)
    output = tmp_path / "x.json"
    short.main(["--device", "cpu", "--shape", "bundled", "--sizes", "64", "-o", str(output)])
    result = json.loads(output.read_text())
    failed, ours = result["systems"]
    assert failed["problem"] == "RuntimeError: a defect"
    assert ours["system"] == "ours full"
    assert ours["rounds"] == 1
    assert result["plans"] == result["capped"] == []
    assert len(result["left_out"]) == 1 + 2 + 3 + 2
    table = output.with_suffix(".md").read_text()
    assert "| 64x64 | ldm full | RuntimeError: a defect |" in table
    (line,) = [line for line in table.splitlines() if line.startswith("| 64x64 | ours full (")]
    assert line.split("|")[4].strip() == "-"  # there is no diffusers for a ratio


def test_options_of_the_short_suite_are_not_taken_without_its_minutes() -> None:
    with pytest.raises(SystemExit):
        suite.main(["--device", "cpu", "--list", "--capped-size", "64"])


def test_tiles_of_a_local_function_give_its_picture() -> None:
    latents = torch.randn(1, 3, 70, 150)

    def decode(z: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z, scale_factor=8.0)

    for tile in peers.TILES:
        assert torch.allclose(peers._tiled(decode, latents, tile), decode(latents), atol=1e-5)


@pytest.mark.parametrize(
    ("variable", "build"),
    [
        ("COMFYUI_DIR", lambda vae: peers.comfyui(vae, CPU, torch.float32)),
        ("TILED_VAE_DIR", lambda vae: peers.tiled_vae(vae, CPU, torch.float32, True)),
    ],
)
def test_a_peer_that_is_not_there_says_what_it_takes(
    variable: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(peers.Missing, match=variable):
        build(Job("bundled", "fp32", 64, 1).vae())
