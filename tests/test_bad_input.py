"""Whatever a server or a user does wrong: one clear line that names it, a row under its own kind, no traceback."""

import socket
import ssl
from pathlib import Path

import pandas as pd
import pytest
import trustme

from tests.bad_peer import BEHAVIOURS, bad_peer
from tests.locust_process import SPEAK, Locust, free_port, locust, run_dirs, run_locust, turns, until
from workers.samples.shards import seal

ONE = ["-f", SPEAK, "--headless", "--users", "1", "--run-time", "2s", "--think-s", "0.1", "--only-summary"]


def assert_clear(run: Locust) -> None:
    assert "Traceback" not in run.said, run.said


# kind, and what the line must tell
EXPECTED = {
    "unauthorised": ("refused", "http_401", "CICADA_TOKEN"),
    "missing route": ("refused", "http_404", "check --host, --dialect and --path"),
    "crashed": ("refused", "http_500", "boom"),
    "full": ("refused", "http_503", "queue full"),
    "html page": ("protocol_error", "wrong_content_type", "text/html"),
    "json answer": ("protocol_error", "wrong_content_type", "application/json"),
    "success false": ("protocol_error", "server_said_failure", "no voice"),
    "html as audio": ("answered", "undecodable_audio", "<html>"),
    "cut mid chunk": ("disconnected", "cut_mid_stream", "after 0.30 s of audio"),
    "reset mid chunk": ("disconnected", "cut_mid_stream", "after"),
    "closed at once": ("disconnected", "closed_before_answer", "before it answered"),
    "not http": ("protocol_error", "not_http", "smtp.example.com"),
    "no audio": ("answered", "no_audio", "no audio"),
    "empty body": ("answered", "no_audio", "no audio"),
    "silence": ("answered", "silence_only", "silence"),
    "short of its size": ("answered", "truncated", "promises"),
    "far too long": ("answered", "too_long", "12.0 s of audio"),
    "never": ("timed_out", "no_answer_in_time", "timeout_s"),
    "headers only": ("timed_out", "no_answer_in_time", "no audio came"),
    "a byte a second": ("timed_out", "answer_too_slow", "of audio came within timeout_s"),
}


@pytest.fixture(scope="module")
def all_at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Locust, pd.DataFrame]:
    """Every bad behaviour at the same time, among good answers."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "texts.txt").write_text("\n".join([*BEHAVIOURS, *["good"] * 5]) + "\n", "utf-8")
    with bad_peer() as peer:
        run = run_locust(
            "-f", SPEAK, "--headless", "--users", "30", "--spawn-rate", "30", "--run-time", "6s", "--think-s", "0.05",
            "--texts", "texts.txt", "--timeout-s", "1", "--host", peer.url, "--only-summary", cwd=folder,
        )  # fmt: skip
    rows = turns(run_dirs(folder)[0])
    rows["said"] = rows.text_name.str.partition(": ")[2]
    return run, rows


def test_the_table_names_every_behaviour() -> None:
    assert set(EXPECTED) | {"good"} == set(BEHAVIOURS)


@pytest.mark.parametrize("behaviour", EXPECTED)
def test_a_bad_answer_is_a_row_of_its_own_kind(all_at_once: tuple[Locust, pd.DataFrame], behaviour: str) -> None:
    rows = all_at_once[1]
    rows = rows[(rows.said == behaviour) & (rows.outcome != "cut")]
    outcome, kind, told = EXPECTED[behaviour]
    assert len(rows), "it never came up"
    assert set(zip(rows.outcome, rows.error_kind, strict=True)) == {(outcome, kind)}
    assert rows.error.str.contains(told, regex=False).all(), rows.error.iloc[0]
    assert not rows.error.str.contains("\n").any()


def test_no_other_session_suffers(all_at_once: tuple[Locust, pd.DataFrame]) -> None:
    rows = all_at_once[1]
    good = rows[(rows.said == "good") & (rows.outcome != "cut")]
    assert len(good) > 20
    assert good.error_kind.isna().all()
    assert good.audio_s.round(6).eq(0.5).all()


def test_failures_are_no_tracebacks_and_no_success(all_at_once: tuple[Locust, pd.DataFrame]) -> None:
    run = all_at_once[0]
    assert_clear(run)
    assert run.process.returncode == 1
    assert "http_401: HTTP 401 (unauthorised: put the token into CICADA_TOKEN or .env)" in run.said, run.said


@pytest.mark.parametrize(
    ("host", "kind", "told"),
    [
        ("http://127.0.0.1:{free}", "connection_refused", "nothing listens on 127.0.0.1:{free}; is the server up"),
        ("http://no-such-host.invalid:8080", "dns_failure", "no address for 'no-such-host.invalid'"),
        ("https://127.0.0.1:{plain}", "tls_failure", "is it an https port?"),
        ("https://127.0.0.1:{tls}", "tls_failure", "for a self-signed one add --insecure"),
        ("http://127.0.0.1:{tls}", None, ""),
    ],
    ids=["refused", "dns", "https to http", "self-signed", "http to https"],
)
def test_unreachable(tmp_path: Path, host: str, kind: str | None, told: str) -> None:
    ports = {"free": free_port()}
    with bad_peer() as plain, bad_peer(_tls()) as tls:
        ports |= {"plain": plain.port, "tls": tls.port}
        run = run_locust(*ONE, "--timeout-s", "1", "--host", host.format(**ports), cwd=tmp_path)
    assert_clear(run)
    assert run.process.returncode == 1
    rows = turns(run_dirs(tmp_path)[0])
    assert len(rows) >= 2
    assert rows.error_kind.notna().all()
    if kind:
        assert set(rows.error_kind) == {kind}
        assert rows.error.str.contains(told.format(**ports), regex=False).all(), rows.error.iloc[0]


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_insecure_speaks_to_a_self_signed_server(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("good\n")
    with bad_peer(_tls()) as peer:
        run = run_locust(*ONE, "--insecure", "--texts", "texts.txt", "--host", peer.url, cwd=tmp_path)
    assert run.process.returncode == 0, run.said
    rows = turns(run_dirs(tmp_path)[0])
    assert len(rows) >= 2
    assert rows.error_kind.isna().all()
    assert set(rows.clock) <= {"kernel", "user"}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--host", "localhost:8080"], "expected http://HOST:PORT"),
        (["--host", "ftp://localhost"], "expected http://HOST:PORT"),
        (["--dialect", "opnai"], "did you mean 'openai'?"),
        (["--format", "aac"], "format: 'aac' cannot be heard"),
        (["--think-s", "3", "1"], "think_s: 3 to 1 is no range"),
        (["--timeout-s", "-1"], "timeout_s: Input should be greater than 0 (given: '-1')"),
        (["--arrivals", "poisson"], "need a rate"),
        (["--texts", "nowhere.txt"], "texts: cannot read nowhere.txt"),
        (["--texts", "latin1.txt"], "latin1.txt is not UTF-8 (line 2)"),
        (["--texts", "empty.txt"], "holds no text"),
        (["--scenario", "nowhere.yaml"], "scenario nowhere.yaml: No such file"),
        (["--scenario", "typo.yaml"], "unknown key 'thinks'; did you mean 'think_s'?"),
        (["--scenario", "list.yaml"], "expected `key: value` lines"),
        (["--scenario", "broken.yaml"], "is no YAML"),
        (["--runs-dir", "texts.txt/runs"], "texts.txt/runs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_be_is_refused_in_one_line(tmp_path: Path, args: list[str], told: str) -> None:
    (tmp_path / "latin1.txt").write_bytes("fine\nna\xefve\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "texts.txt").write_text("good\n")
    (tmp_path / "typo.yaml").write_text("thinks: [1, 2]\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    run = run_locust(*ONE, "--host", "http://127.0.0.1:1", *args, cwd=tmp_path)
    assert_clear(run)
    assert run.process.returncode == 2, run.said
    [line] = [line for line in run.lines if told in line]
    assert "cicada" in line
    assert not (tmp_path / "runs").exists()


def test_forked_workers_go_when_the_run_is_refused(tmp_path: Path) -> None:
    port = str(free_port())
    ports = ["--master-bind-port", port, "--master-port", port]
    args = [*ONE, "--processes", "2", *ports, "--host", "http://127.0.0.1:1", "--dialect", "foo"]
    with locust(*args, cwd=tmp_path) as run:
        assert run.end(20) == 2, run.said
        until(lambda: run.said.count("Shutting down (exit code 0)") == 2, 20, "both workers' end")
    assert_clear(run)


@pytest.mark.parametrize("where", ["spool", "runs"])
def test_a_full_disk_stops_the_run_and_keeps_what_is_there(tmp_path: Path, where: str) -> None:
    """A limit on file size stands in for a disk that fills up: writes fail in the same place."""
    (tmp_path / "texts.txt").write_text("good\n")
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(SPEAK).parents[1])!r})\n"
        f"is_worker = '--worker' in sys.argv\n"
        f"if is_worker == {where == 'spool'}:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (16000, 16000))\n"
        "from locustfiles.speak_http import Listener\n"
    )
    port = str(free_port())
    with bad_peer() as peer:
        worker = Locust(["-f", str(limited), "--worker", "--master-port", port], tmp_path)
        try:
            run = run_locust(
                "-f", str(limited), "--master", "--master-bind-port", port, "--expect-workers", "1", "--headless",
                "--users", "10", "--spawn-rate", "10", "--think-s", "0.02", "--texts", "texts.txt", "--run-time", "60s",
                "--host", peer.url, "--only-summary", cwd=tmp_path, within_s=40,
            )  # fmt: skip
        finally:
            worker.kill()
    assert_clear(run)
    assert run.process.returncode == 3, run.said
    [line] = [line for line in run.lines if "cannot record rows: " in line]
    assert str(tmp_path) in line or "runs/" in line
    assert f"--{where}-dir" in line
    if where == "spool":
        assert "could not record" in run.said
    else:
        assert "python -m workers recover" in run.said
    seal(run_dirs(tmp_path)[0])  # as a reader does: where the disk is full, the tables may have found no room either
    rows = turns(run_dirs(tmp_path)[0])
    assert len(rows) >= 10
    assert (rows.outcome.eq("answered") | rows.outcome.eq("cut")).all()


def test_web_ui_refuses_a_bad_form_and_stays_up(tmp_path: Path) -> None:
    from tests.test_nothing_lost import _post

    web = free_port()
    with (
        bad_peer() as peer,
        locust("-f", SPEAK, "--web-host", "127.0.0.1", "--web-port", str(web), "--only-summary", cwd=tmp_path) as run,
    ):
        run.wait_for("Starting web interface")
        form = {"user_count": "1", "spawn_rate": "1", "host": peer.url, "think_s": "5 1"}
        until(lambda: _post(web, "/swarm", form), 10, "the web UI")
        run.wait_for("no run was started: scenario: think_s: 5 to 1 is no range")
        (tmp_path / "texts.txt").write_text("good\n")
        form |= {"think_s": "0.1", "texts": "texts.txt"}
        until(lambda: (_post(web, "/swarm", form) or {}).get("success"), 10, "the web UI")
        run.wait_for("rows go to")
        until(lambda: len(peer.requests) > 3, 10, "turns")
    assert_clear(run)


def test_a_port_that_is_taken_is_no_traceback_of_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
        run = run_locust(*ONE, "--timeout-s", "0.5", "--connect-timeout-s", "0.5", "--host", host, cwd=tmp_path)
    assert_clear(run)
    assert set(turns(run_dirs(tmp_path)[0]).error_kind) == {"no_answer_in_time"}
