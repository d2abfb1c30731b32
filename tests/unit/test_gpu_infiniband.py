"""InfiniBand ports from a tree such as /sys, and adapters that keep their reader waiting."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nodeagent.gpu import infiniband
from nodeagent.gpu.host import Port
from nodeagent.gpu.infiniband import Watch, ports


def lay_out(sys: Path, device: str, number: int, **files: str) -> Path:
    """A port's directory; `files` are its files' texts."""
    home = sys / "class/infiniband" / device / "ports" / str(number)
    (home / "counters").mkdir(parents=True)
    for name, text in files.items():
        (home / ("counters/link_downed" if name == "downed" else name)).write_text(f"{text}\n")
    return home


def test_ports_are_read_with_state_rate_and_lost_links(tmp_path: Path) -> None:
    up = {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "200 Gb/sec (4X HDR)", "link_layer": "InfiniBand"}
    lay_out(tmp_path, "mlx5_0", 1, **up, downed="3")
    lay_out(tmp_path, "mlx5_1", 2, state="1: DOWN", phys_state="3: Disabled", rate="2.5 Gb/sec (1X SDR)")
    lay_out(tmp_path, "mlx5_2", 1, **{**up, "link_layer": "Ethernet"})
    virtual = lay_out(tmp_path, "mlx5_3", 1, **up).parents[1]
    (virtual / "device").mkdir()
    (virtual / "device/physfn").symlink_to("../mlx5_0")
    lay_out(tmp_path, "odd", 1, state="nonsense", rate="")
    assert [Port(**one) for one in ports(str(tmp_path))] == [
        Port("mlx5_0", 1, 4, 5, 200.0, 3),
        Port("mlx5_1", 2, 1, 3, 2.5, None),
        Port("odd", 1),
    ]
    assert Port("mlx5_0", 1).name == "mlx5_0/1"


def test_a_node_without_such_ports_has_none_and_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    assert ports(str(tmp_path)) == []
    assert Watch(str(tmp_path)).read(1.0) == {}
    assert threading.active_count() == before


def test_an_adapter_that_hangs_is_silent_until_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "mlx5_0", 1, state="4: ACTIVE")
    watch = Watch(str(tmp_path))
    assert watch.read(5.0) == {"ports": [{"device": "mlx5_0", "number": 1, "state": 4}]}
    answer = threading.Event()
    asked = []

    def late(sys: str) -> list[dict[str, object]]:
        asked.append(sys)
        answer.wait(10.0)
        return ports(sys)

    monkeypatch.setattr(infiniband, "ports", late)
    assert watch.read(0.01) == watch.read(0.01) == {"ports_silent": True}
    assert len(asked) == 1, "nobody is sent after the one who waits"
    answer.set()
    assert watch.read(5.0) == {"ports": [{"device": "mlx5_0", "number": 1, "state": 4}]}


def test_a_file_that_may_not_be_read_is_no_value(tmp_path: Path) -> None:
    home = lay_out(tmp_path, "mlx5_0", 1, state="4: ACTIVE")
    os.remove(home / "state")
    (home / "state").mkdir()
    assert ports(str(tmp_path)) == [{"device": "mlx5_0", "number": 1}]
