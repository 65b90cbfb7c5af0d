"""Nothing grows from one generation to the next."""

from __future__ import annotations

from tests.webui import host as hosts
from tests.webui.soak import MB, run


def test_nothing_grows(host: hosts.Host) -> None:
    first, warm, last = run(host, 36, 18)
    assert last["depth"] == first["depth"]
    assert last["threads"] <= warm["threads"] + 2  # the host's own workers
    assert last["files"] <= warm["files"] + 4
    assert last["tensors"] <= warm["tensors"] + 20
    assert last["rss"] < warm["rss"] + 100 * MB
