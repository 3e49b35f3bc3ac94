"""However a run ends, no row is lost: counted against the request ids in the server's trace, not our own counters."""

import json
import os
import re
import signal
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from tests.locust_process import SPEAK, Locust, free_port, heard_by_server, locust, run_dirs, turns, until
from tests.server_process import Server, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # Answers of 0.2 to 3.3 s: whenever a run ends, turns are in flight.
    with running_server("--engine", "tone", "--pace", "100,0.2", trace=tmp_path / "trace.jsonl") as started:
        yield started


LOAD = ["-f", SPEAK, "--users", "12", "--spawn-rate", "12", "--think-s", "0.05", "0.2", "--only-summary"]


def assert_nothing_lost(run_dir: Path, trace: Path, at_least: int = 10) -> pd.DataFrame:
    """Every request the server saw is a row, once; what the rows call answered, the server finished."""
    rows = turns(run_dir)
    heard = heard_by_server(trace, run_dir.name)
    assert len(heard) >= at_least, "the test has shown nothing: too few requests"
    assert heard - set(rows.request_id) == set()
    assert rows.request_id.is_unique
    assert set(rows.request_id) - heard == set(rows[rows.sent_at.isna()].request_id) - heard
    return rows


def answered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows.outcome == "answered") & rows.error_kind.isna()]


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one process", "two workers"])
@pytest.mark.parametrize("drain", ["10", "0.2"], ids=["turns end", "turns are cut"])
def test_run_time_with_turns_in_flight(tmp_path: Path, server: Server, processes: list[str], drain: str) -> None:
    with locust(
        *LOAD, *processes, *_own_port(processes), "--headless", "--run-time", "3s", "--drain-s", drain,
        "--host", server.url, cwd=tmp_path,
    ) as run:  # fmt: skip
        assert run.end() == 0, run.said
    assert server.trace is not None
    rows = assert_nothing_lost(run_dirs(tmp_path)[0], server.trace)
    cut = rows[rows.outcome == "cut"]
    if drain == "10":
        assert cut.empty
    else:
        assert len(cut) >= 3
        assert set(cut.error_kind) == {"run_ended"}
    assert len(answered(rows)) == len(rows) - len(cut)
    if processes:
        assert rows.worker.nunique() == 2
        assert not list((tmp_path / "spool").rglob("*.msgpack")), "spools the master has should be gone"


def _own_port(processes: list[str]) -> list[str]:
    """Two tests at once must not share Locust's default port: master and its forked workers read both options."""
    if not processes:
        return []
    port = str(free_port())
    return ["--master-bind-port", port, "--master-port", port]


def test_ctrl_c_once(tmp_path: Path, server: Server) -> None:
    processes = ["--processes", "2"]
    with locust(*LOAD, *processes, *_own_port(processes), "--headless", "--host", server.url, cwd=tmp_path) as run:
        until(lambda: len(server.rows()) > 20, 30, "20 answers")
        run.signal_group(signal.SIGINT)
        assert run.end() == 0, run.said
    assert "Traceback" not in run.said
    assert server.trace is not None
    rows = assert_nothing_lost(run_dirs(tmp_path)[0], server.trace)
    assert (rows.outcome == "answered").all()


def test_ctrl_c_in_a_single_process(tmp_path: Path, server: Server) -> None:
    with locust(*LOAD, "--headless", "--host", server.url, "--drain-s", "0", cwd=tmp_path) as run:
        until(lambda: len(server.rows()) > 20, 30, "20 answers")
        run.signal_group(signal.SIGINT)
        assert run.end() == 0, run.said
    assert server.trace is not None
    rows = assert_nothing_lost(run_dirs(tmp_path)[0], server.trace)
    assert {"answered", "cut"} == set(rows.outcome)


def test_autoquit(tmp_path: Path, server: Server) -> None:
    ui = ["--web-host", "127.0.0.1", "--web-port", str(free_port()), "--autostart", "--autoquit", "0"]
    processes = ["--processes", "2"]
    with locust(
        *LOAD, *processes, *_own_port(processes), *ui, "--run-time", "3s", "--host", server.url, cwd=tmp_path
    ) as run:
        assert run.end() == 0, run.said
    assert server.trace is not None
    assert_nothing_lost(run_dirs(tmp_path)[0], server.trace)


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one process", "two workers"])
def test_web_ui_stop_and_start_again(tmp_path: Path, server: Server, processes: list[str]) -> None:
    port = free_port()
    ui = ["--web-host", "127.0.0.1", "--web-port", str(port)]
    with locust(*LOAD, *processes, *_own_port(processes), *ui, "--host", server.url, cwd=tmp_path) as run:
        run.wait_for("Starting web interface")
        if processes:
            run.wait_for("2 workers connected")
        for number, think in enumerate(("0.05", "0.3"), 1):
            before = len(server.rows())
            form = {"user_count": "10", "spawn_rate": "10", "host": server.url, "think_s": think, "warm_up_s": ""}
            started = until(lambda f=form: _post(port, "/swarm", f), 10, "the web UI")  # type: ignore[misc]
            assert started["success"], started
            run.wait_for("rows go to", times=number)
            until(lambda b=before: len(server.rows()) > b + 15, 30, "15 answers")  # type: ignore[misc]
            _get(port, "/stop")
            run.wait_for("nothing lost", times=number)
            if processes:
                run.wait_for("reported as ready", times=2 + 2 * number)
        run.signal_group(signal.SIGINT)
        assert run.end() == 0, run.said
    dirs = run_dirs(tmp_path)
    assert len(dirs) == 2
    assert server.trace is not None
    for run_dir, think in zip(dirs, (0.05, 0.3), strict=True):
        assert_nothing_lost(run_dir, server.trace)
        assert json.loads((run_dir / "run.json").read_text())["scenario"]["think_s"] == [think, think]
    assert (tmp_path / "runs" / "latest").resolve() == dirs[1].resolve()


def _post(port: int, path: str, form: dict[str, str]) -> dict[str, object] | None:
    data = urllib.parse.urlencode(form).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    except OSError:
        return None


def _get(port: int, path: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


@pytest.fixture
def cluster(tmp_path: Path, server: Server) -> Iterator[tuple[Locust, list[Locust]]]:
    """A master and two workers, as on three machines, with turns under way."""
    with _cluster(tmp_path, server) as found:
        yield found


class _cluster:
    def __init__(self, folder: Path, server: Server, worker_port: int | None = None, *args: str) -> None:
        port = free_port()
        self.master = Locust(
            [*LOAD, "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--headless",
             "--expect-workers", "2", "--host", server.url, *args], folder,
        )  # fmt: skip
        self.port = port
        self.workers = [
            Locust(
                ["-f", SPEAK, "--worker", "--master-port", str(worker_port if n == 1 and worker_port else port)], folder
            )
            for n in range(2)
        ]

    def __enter__(self) -> tuple[Locust, list[Locust]]:
        return self.master, self.workers

    def __exit__(self, *_: object) -> None:
        for process in (self.master, *self.workers):
            process.kill()


def test_killed_worker_is_recovered_from_this_machines_disk(
    tmp_path: Path, server: Server, cluster: tuple[Locust, list[Locust]]
) -> None:
    master, workers = cluster
    until(lambda: len(server.rows()) > 30, 30, "30 answers")
    workers[0].process.kill()
    until(lambda: "failed to send heartbeat" in master.said, 30, "the master notices")
    master.signal_group(signal.SIGINT)
    assert master.end() != 0, "a run that lost a worker must not look well"
    assert server.trace is not None
    run_dir = run_dirs(tmp_path)[0]
    rows = assert_nothing_lost(run_dir, server.trace)
    in_flight = rows[rows.error_kind == "worker_lost"]
    assert 1 <= len(in_flight) <= 12
    assert (in_flight.outcome == "cut").all()
    assert "was lost; its rows were recovered" in master.said
    facts = json.loads((run_dir / "run.json").read_text())
    assert sorted(worker["recovered"] for worker in facts["workers"].values()) == [False, True]


def test_killed_worker_whose_disk_is_away_is_named(
    tmp_path: Path, server: Server, cluster: tuple[Locust, list[Locust]]
) -> None:
    master, workers = cluster
    until(lambda: len(server.rows()) > 30, 30, "30 answers")
    workers[0].process.kill()
    [spool] = [path for path in (tmp_path / "spool").rglob("*.msgpack") if _pid_of(path) == workers[0].process.pid]
    spool.unlink()
    until(lambda: "failed to send heartbeat" in master.said, 30, "the master notices")
    master.signal_group(signal.SIGINT)
    assert master.end() != 0
    assert f"worker {spool.stem} was lost with what it had not handed over" in master.said
    assert f"python -m workers recover {spool}" in master.said


def _pid_of(log: Path) -> int:
    import msgpack

    with log.open("rb") as file:
        return int(next(iter(msgpack.Unpacker(file)))["worker"]["pid"])


class _Wire:
    """A wire between a worker and its master that can be cut and mended: bytes stop, connections stay."""

    def __init__(self, to_port: int, port: int) -> None:
        self._to, self.whole = to_port, threading.Event()
        self.whole.set()
        self._door = socket.create_server(("127.0.0.1", port))
        self._socks: list[socket.socket] = [self._door]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except ConnectionRefusedError:  # the master is not up yet: the worker tries again
                    near.close()
                    continue
                self._socks += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.whole.wait()
                sink.sendall(data)

    def close(self) -> None:
        self.whole.set()
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_worker_cut_off_for_thirty_seconds_and_back(tmp_path: Path, server: Server) -> None:
    wire_port = free_port()
    with _cluster(tmp_path, server, wire_port) as (master, _workers):
        cluster_port = int(re.findall(r"--master-bind-port (\d+)", " ".join(map(str, master.process.args)))[0])  # type: ignore[arg-type]
        wire = _Wire(cluster_port, wire_port)
        try:
            until(lambda: len(server.rows()) > 30, 60, "30 answers")
            wire.whole.clear()
            master.wait_for("failed to send heartbeat", 20)
            threading.Event().wait(30)  # the thirty seconds of the requirement: nothing to wait for but time
            wire.whole.set()
            master.wait_for("self-healed", 30)
            before = len(server.rows())
            until(lambda: len(server.rows()) > before + 20, 30, "20 answers more")
            master.signal_group(signal.SIGINT)
            assert master.end() == 0, master.said
        finally:
            wire.close()
    assert server.trace is not None
    rows = assert_nothing_lost(run_dirs(tmp_path)[0], server.trace)
    assert rows.worker.nunique() == 2


def test_killed_master_is_recovered_from_the_spools(tmp_path: Path, server: Server) -> None:
    with _cluster(tmp_path, server) as (master, workers):
        until(lambda: len(server.rows()) > 30, 30, "30 answers")
        master.process.kill()
        before = len(server.rows())
        until(lambda: len(server.rows()) > before + 10, 30, "workers that go on")
        for worker in workers:
            os.kill(worker.process.pid, signal.SIGTERM)
        for worker in workers:
            worker.end(90)
    run_dir = run_dirs(tmp_path)[0]
    spool = tmp_path / "spool" / run_dir.name
    with locust("recover", str(spool), str(run_dir), cwd=tmp_path, module="workers") as recovery:
        assert recovery.end() == 0, recovery.said
    assert server.trace is not None
    rows = assert_nothing_lost(run_dir, server.trace)
    assert len(answered(rows)) > 30


def test_one_process_and_four_give_the_same(tmp_path: Path, server: Server) -> None:
    figures = []
    for processes in ([], ["--processes", "4"]):
        folder = tmp_path / f"{len(processes)}"
        folder.mkdir()
        with locust(
            *LOAD, *processes, *_own_port(processes), "--headless", "--run-time", "4s", "--host", server.url, cwd=folder
        ) as run:
            assert run.end() == 0, run.said
        rows = turns(run_dirs(folder)[0])
        figures.append((list(rows.columns), answered(rows).ttfc_s.median(), rows.worker.nunique()))
    (columns, median_s, workers), (columns_4, median_4_s, workers_4) = figures
    assert columns == columns_4
    assert (workers, workers_4) == (1, 4)
    assert median_4_s == pytest.approx(median_s, abs=0.02)  # the server is paced: first audio after 100 ms
