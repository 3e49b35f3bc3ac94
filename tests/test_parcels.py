"""Files in pieces from a worker to the master: in order, one at a time, and nowhere but where they belong."""

import os
from pathlib import Path
from typing import Any

import gevent
import pytest

from workers.samples.parcels import FOLDER, PIECE_BYTES, Parcels, write


class Master:
    """Writes what it is sent, and acknowledges it, until it is told to lose things."""

    def __init__(self, run_dir: Path, takes: int = 1_000_000) -> None:
        self.messages: list[dict[str, Any]] = []
        self.parcels = Parcels("run-1", self._receive)
        self._run_dir, self._takes = run_dir, takes

    def _receive(self, kind: str, message: dict[str, Any]) -> None:
        assert kind == "cicada_parcel"
        self.messages.append(message)
        if len(self.messages) > self._takes:
            return
        write(self._run_dir, message["name"], message["offset"], message["data"])
        gevent.spawn(self.parcels.acknowledge)


@pytest.mark.parametrize("size", [1, 1_000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17])
def test_a_file_arrives_whole(tmp_path: Path, size: int) -> None:
    master = Master(tmp_path)
    data = os.urandom(size)
    master.parcels.send("slow-1.flac", data, 10.0)
    assert (tmp_path / FOLDER / "slow-1.flac").read_bytes() == data
    assert len(master.messages) == -(-size // PIECE_BYTES)
    assert all(len(message["data"]) <= PIECE_BYTES for message in master.messages)
    assert [message["offset"] for message in master.messages] == list(range(0, size, PIECE_BYTES))
    assert {message["run"] for message in master.messages} == {"run-1"}


def test_one_piece_is_under_way_at_a_time(tmp_path: Path) -> None:
    sent: list[int] = []
    parcels = Parcels("run", lambda _kind, message: sent.append(message["offset"]))
    greenlet = gevent.spawn(parcels.send, "a", bytes(2 * PIECE_BYTES + 1), 30.0)
    for count in (1, 2, 3):
        gevent.sleep(0)
        gevent.sleep(0)
        assert len(sent) == count
        parcels.acknowledge()
    greenlet.join(10)
    assert greenlet.ready()
    assert sent == [0, PIECE_BYTES, 2 * PIECE_BYTES]


def test_a_piece_that_is_not_acknowledged_costs_its_file_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = Master(tmp_path, takes=1)
    master.parcels.send("lost.flac", bytes(3 * PIECE_BYTES), 0.05)
    assert len(master.messages) == 2, "no piece follows one that was lost"
    assert "lost.flac" in caplog.text
    master._takes = 1_000
    master.parcels.send("next.flac", b"whole", 10.0)
    assert (tmp_path / FOLDER / "next.flac").read_bytes() == b"whole"


def test_a_file_that_is_sent_again_replaces_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, "a.flac", 0, b"longer than")
    write(tmp_path, "a.flac", 0, b"new")
    write(tmp_path, "a.flac", 3, b"er")
    assert (tmp_path / FOLDER / "a.flac").read_bytes() == b"newer"


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/x", "..\\..\\x", "a/../../../x", "x\0y", "a b;c$(d).flac", "ünï", "..x", "%2e%2e%2fx", "\n"],
)
def test_a_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    """Whoever sends to a master's port may send any name."""
    run_dir = tmp_path / "runs" / "one"
    run_dir.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    write(run_dir, name, 0, b"data")
    (made,) = set(tmp_path.rglob("*")) - before - {run_dir / FOLDER}
    assert made.parent == run_dir / FOLDER
    assert made.read_bytes() == b"data"


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path, name, 0, b"data")
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_later_piece_of_a_file_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path, "a.flac", 100, b"data")
