"""The target's own metrics: what endpoints say is in the rows, whatever they do, and nobody else waits for them."""

import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import msgpack
import pandas as pd
import pyarrow.parquet as pq
import pytest
import trustme
from locust_process import SPEAK, free_port, run_dirs, run_locust
from prometheus_client.parser import text_string_to_metric_families
from server_process import running_server

from analysis.runs import read_table
from analysis.scraped import COLUMNS, ROLES, read_labels, read_scraped, series
from workers import scraping
from workers.collector import Collector
from workers.exposition import Exposition, Sample
from workers.manifest import opening
from workers.samples import logs, schema, shards
from workers.samples.recorder import LogFull, Recorder
from workers.scraping import Scraper, next_due
from workers.settings import build

WITHIN_S = 10.0

# ------------------------------------------------------------------------ expositions, in the form of their sources

VLLM = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9464.0
# HELP process_resident_memory_bytes Resident memory size in bytes.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.1e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 8.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 3.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 0.125
# HELP vllm:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage. DEPRECATED.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 0.125
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 4711.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 1.7629e+09
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="unsloth/Llama-3.2-1B-Instruct"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="unsloth/Llama-3.2-1B-Instruct"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 0.5
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",gpu_memory_utilization="0.9"} 1.0
"""

TRITON = """\
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="parakeet",version="1"} 10
nv_inference_count{model="fastpitch",version="1"} 100
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="parakeet",version="1"} 5
nv_inference_exec_count{model="fastpitch",version="1"} 100
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="parakeet",version="1"} 7
nv_inference_pending_request_count{model="fastpitch",version="1"} 0
# HELP nv_inference_request_summary_us Summary of request duration
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us_count{model="parakeet",version="1"} 10
nv_inference_request_summary_us_sum{model="parakeet",version="1"} 1234567
nv_inference_request_summary_us{model="parakeet",version="1",quantile="0.5"} 120000
nv_inference_request_summary_us{model="parakeet",version="1",quantile="0.99"} NaN
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-7a9c9f44-ff57-1177-e21a-1740a8cf1a65"} 0.25
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-7a9c9f44-ff57-1177-e21a-1740a8cf1a65"} 3145728
"""

_GPU = 'gpu="{0}",UUID="GPU-604ac76c-{0}",pci_bus_id="00000000:0{0}:00.0",device="nvidia{0}",modelName="NVIDIA A100"'
DCGM = "\n".join(
    [
        "# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).",
        "# TYPE DCGM_FI_DEV_GPU_UTIL gauge",
        f'DCGM_FI_DEV_GPU_UTIL{{{_GPU.format(0)},Hostname="a100"}} 50',
        f'DCGM_FI_DEV_GPU_UTIL{{{_GPU.format(1)},Hostname="a100"}} 9223372036854775794',
        "# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).",
        "# TYPE DCGM_FI_DEV_FB_USED gauge",
        f'DCGM_FI_DEV_FB_USED{{{_GPU.format(0)},Hostname="a100"}} 4845',
        f'DCGM_FI_DEV_FB_USED{{{_GPU.format(1)},Hostname="a100"}} 9223372036854775794',
        "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).",
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter",
        f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{_GPU.format(0)},Hostname="a100"}} 123456789012',
        "",
    ]
)


def read(text: str) -> list[Sample]:
    return Exposition().read(text.split("\n"))


# ------------------------------------------------------------------------------------------ reading one exposition


def official(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What the official parser finds in it, by what we say is kept."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name
            if family.type == "counter" and f"\n{name}" not in text:
                name = name.removesuffix("_total")  # it adds that to Triton's and DCGM's counters
            distribution = family.type in ("histogram", "summary")
            if distribution and not name.endswith(("_sum", "_count")):
                continue
            if name.startswith(("python_", "process_")) or name.endswith("_created"):
                continue
            found[name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    return found


@pytest.mark.parametrize("text", [VLLM, TRITON, DCGM], ids=["vllm", "triton", "dcgm"])
def test_what_is_kept_is_what_the_official_parser_finds(text: str) -> None:
    ours = {(one.metric, tuple(sorted(read_labels(one.labels).items()))): one.value for one in read(text)}
    assert ours == official(text)
    assert len(ours) >= 5


def test_buckets_quantiles_and_the_exporters_own_process_are_left_out() -> None:
    names = {one.metric for one in read(VLLM + TRITON + 'go_goroutines 8\npromhttp_x 1\nbare_bucket{le="1"} 2\n')}
    assert not [name for name in names if "bucket" in name or name.endswith("_created")]
    assert not [name for name in names if name.startswith(("python_", "process_", "go_", "promhttp_"))]
    assert not [one for one in read(TRITON) if "quantile" in one.labels]
    kinds = {one.metric: one.kind for one in read(VLLM + TRITON)}
    assert kinds["vllm:time_to_first_token_seconds_sum"] == "histogram"
    assert kinds["nv_inference_request_summary_us_count"] == "summary"
    assert kinds["vllm:prompt_tokens_total"] == "counter"
    assert kinds["nv_inference_count"] == "counter"
    assert kinds["vllm:num_requests_waiting"] == "gauge"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a 1", Sample("a", "", "untyped", 1.0)),
        ("a{} 1", Sample("a", "", "untyped", 1.0)),
        ("  a\t-1.5e3 1395066363000 ", Sample("a", "", "untyped", -1500.0)),
        ('a{y="2",x="1",} 3', Sample("a", 'x="1",y="2"', "untyped", 3.0)),
        ('a { x = "1" , y = "2" } 3', Sample("a", 'x="1",y="2"', "untyped", 3.0)),
        (r'a{x="} 9 \" , { \\"} 3', Sample("a", r'x="} 9 \" , { \\"', "untyped", 3.0)),
        ('a{x="\u2028\x0b日本"} 3\r', Sample("a", 'x="\u2028\x0b日本"', "untyped", 3.0)),
        ('a{big="' + "z" * 3_000_000 + '",x="1"} 3', Sample("a", 'x="1"', "untyped", 3.0)),
        ('a_total{x="1"} 3 # {trace_id="f"} 0.5 1.0', Sample("a_total", 'x="1"', "untyped", 3.0)),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_line_in_any_form_of_the_format_is_read(line: str, expected: Sample) -> None:
    assert read(line) == [expected]


@pytest.mark.parametrize("value", ["NaN", "nan", "+Inf", "-Inf", "Inf"])
def test_what_is_no_number_is_left_out(value: str) -> None:
    assert read(f"a {value}\nb 1\n") == [Sample("b", "", "untyped", 1.0)]


@pytest.mark.parametrize(
    "line",
    [
        "<html>", '{"status": "ok"}', "a", "a ", "a one", "a 1_000", "1a 2", 'a{x="1" 2', 'a{x=1} 2', 'a{x="1"} 2 3 4',
        'a{x="1\\"} 2', "\x00\x01", "a" * 5000 + " 1", "a{" + 'x="1",' * 100_000,
    ],
    ids=lambda line: line[:12].encode("ascii", "backslashreplace").decode().replace("\x00", "0"),
)  # fmt: skip
def test_a_line_that_is_no_metric_is_refused_by_number(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 3 of its answer is no metric: ") as caught:
        read(f"# HELP a b\nb 1\n{line}\nc 1\n")
    assert len(str(caught.value)) < 300


def test_pieces_give_what_the_whole_gives() -> None:
    lines = (VLLM + TRITON + DCGM).split("\n")
    for size in (1, 2, 7):
        exposition = Exposition()
        pieces = [exposition.read(lines[first : first + size]) for first in range(0, len(lines), size)]
        assert [one for piece in pieces for one in piece] == read(VLLM + TRITON + DCGM)
        assert exposition.samples == sum(bool(line) and line[0] != "#" for line in lines)


@pytest.mark.parametrize(
    ("due_at", "now", "expected"),
    [
        (100.0, 100.01, 101.0),
        (101.0, 101.99, 102.0),
        (101.0, 102.5, 103.0),
        (101.0, 100.9, 102.0),
        (103.0, 190.2, 191.0),
    ],
)
def test_scrapes_are_due_on_a_grid_that_does_not_drift(due_at: float, now: float, expected: float) -> None:
    assert next_due(100.0, due_at, now) == expected


def test_a_hundred_thousand_scrapes_end_where_the_grid_says() -> None:
    due_at = 100.25
    for _ in range(100_000):
        due_at = next_due(100.25, due_at, due_at + 0.3)
    assert due_at == 100_100.25


# ---------------------------------------------------------------------------------------------- endpoints that are


Act = Callable[[socket.socket, bytes], None]


@dataclass
class Exporter:
    """A server on a port of its own that does what `act` says, request by request; threads and raw sockets."""

    port: int
    act: Act
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"


def http(body: str | bytes, status: str = "200 OK", kind: str = "text/plain; version=0.0.4", more: str = "") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode() + data


def says(answer: bytes) -> Act:
    return lambda sock, request: sock.sendall(answer)


@contextmanager
def exporter(act: Act, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Exporter]:
    listener = socket.create_server(("127.0.0.1", port))
    made = Exporter(listener.getsockname()[1], act)

    def serve(sock: socket.socket) -> None:
        with closing(sock):
            try:
                sock.settimeout(WITHIN_S)
                if tls is not None:
                    sock = tls.wrap_socket(sock, server_side=True)
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = sock.recv(65536)
                    if not piece:
                        return
                    request += piece
                made.requests.append(request)
                made.act(sock, request)
            except OSError:  # the scraper went away, as it may
                pass
            finally:
                sock.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    threads = [threading.Thread(target=accept, daemon=True)]
    threads[0].start()
    try:
        yield made
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join(WITHIN_S)


class Counting:
    """An endpoint whose gauge says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, sock: socket.socket, request: bytes) -> None:
        self.asked += 1
        sock.sendall(http(f"# TYPE asked gauge\nasked {self.asked}\n"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "EVERY_S", 0.05)
    monkeypatch.setattr(scraping, "TIMEOUT_S", 2.0)


@pytest.fixture
def start(tmp_path: Path, quick: None) -> Iterator[Callable[..., Scraper]]:
    started: list[Scraper] = []

    def begin(*urls: str, insecure: bool = False) -> Scraper:
        started.append(Scraper(tmp_path / schema.METRICS_LOG, "r1", urls, insecure=insecure))
        return started[-1]

    yield begin
    for scraper in started:
        gevent.killall(scraper._greenlets)


def until(probe: Callable[[], Any], what: str) -> None:
    with gevent.Timeout(WITHIN_S, AssertionError(f"not within {WITHIN_S} s: {what}")):
        while not probe():
            gevent.sleep(0.005)


def scraped(scraper: Scraper, times: int = 1, of: int = 0) -> None:
    """Wait until that many scrapes of an endpoint are over, whatever came of them."""
    until(lambda: scraper._endpoints[of].scrapes >= times, f"{times} scrapes")


# ---------------------------------------------------------------------------------------------------- what is kept


def test_figures_that_change_are_rows_that_change(start: Callable[..., Scraper], tmp_path: Path) -> None:
    act = Counting()
    with exporter(act) as target:
        scraper = start(target.url)
        scraped(scraper, 5)
        facts = scraper.stop()
    shards.seal(tmp_path)
    rows = pq.read_table(tmp_path / "server" / "metrics" / "scraped.parquet").to_pandas()
    assert list(rows.columns) == ["run", "endpoint", "metric", "labels", "kind", "value", "at"]
    assert list(rows["value"]) == [float(n + 1) for n in range(len(rows))]
    assert len(rows) >= 5
    assert rows["at"].is_monotonic_increasing
    assert set(rows["endpoint"]) == {target.url}
    assert (set(rows["run"]), set(rows["metric"]), set(rows["kind"])) == ({"r1"}, {"asked"}, {"gauge"})
    told = facts[target.url]
    assert (told["failed"], told["last_error"], told["series"], told["metrics_left_out"]) == (0, None, 1, [])
    assert told["scrapes"] == len(rows)


def test_rows_are_there_before_the_end(start: Callable[..., Scraper], tmp_path: Path) -> None:
    """As after SIGKILL: nobody closed anything, and the last row is torn."""
    with exporter(says(http(VLLM))) as target:
        scraper = start(target.url)
        scraped(scraper, 3)
        path = tmp_path / schema.METRICS_LOG
        path.write_bytes(path.read_bytes()[:-3])
    log = logs.read_log(path)
    rows = [row for table, batch in log.batches() for row in batch if table == "metrics"]
    assert len(rows) >= 3 * len(read(VLLM)) - 1
    assert log.torn_bytes > 0
    frame = read_scraped(tmp_path)
    assert len(frame) == len(rows)


def test_no_more_than_400_series_are_kept_and_the_rest_is_named_once(
    start: Callable[..., Scraper], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "".join(f'early{{n="{n}"}} {n}\n' for n in range(300)) + "".join(f'late{{n="{n}"}} 1\n' for n in range(700))
    with exporter(says(http(body))) as target:
        scraper = start(target.url)
        scraped(scraper, 4)
        told = scraper.stop()[target.url]
    frame = read_scraped(tmp_path)
    assert told["series"] == 400
    assert told["metrics_left_out"] == ["late"]
    assert (frame.groupby("at")["value"].count() == 400).all()
    assert frame.groupby("metric", observed=True)["labels"].nunique().to_dict() == {"early": 300, "late": 100}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "at most 400 series" in lines[0]
    assert "late" in lines[0]


def test_series_that_differ_only_in_a_text_count_as_one(start: Callable[..., Scraper], tmp_path: Path) -> None:
    body = "".join(f'a{{prompt="{"x" * 500}{n}",k="v"}} {n}\n' for n in range(3))
    with exporter(says(http(body))) as target:
        scraper = start(target.url)
        scraped(scraper, 2)
        told = scraper.stop()[target.url]
    frame = read_scraped(tmp_path)
    assert (told["series"], told["metrics_left_out"]) == (1, ["a"])
    assert set(frame["labels"]) == {'k="v"'}
    assert set(frame["value"]) == {0.0}


def test_credentials_are_used_and_never_kept(start: Callable[..., Scraper], tmp_path: Path) -> None:
    with exporter(says(http("a 1\n"))) as target:
        place = f"127.0.0.1:{target.port}/metrics"
        one, other = f"http://me:s3%40cret@{place}?key=K1secret", f"http://me:s3%40cret@{place}?key=K2secret"
        scraper = start(one, other, one)
        scraped(scraper, 2)
        scraped(scraper, 2, of=1)
        facts = scraper.stop()
        heads = [request.decode() for request in target.requests]
    assert {head.split()[1] for head in heads} == {"/metrics?key=K1secret", "/metrics?key=K2secret"}
    assert all("Authorization: Basic bWU6czNAY3JldA==" in head for head in heads)
    assert list(facts) == [f"http://[redacted]@{place}?[redacted]", f"http://[redacted]@{place}?[redacted] #2"]
    kept = (tmp_path / schema.METRICS_LOG).read_bytes() + json.dumps(facts).encode()
    assert not [word for word in (b"cret", b"secret", b"K1", b"K2") if word in kept]
    assert set(read_scraped(tmp_path)["endpoint"]) == set(facts)


# ---------------------------------------------------------------------------------- endpoints that are not, or no more


def hang(sock: socket.socket, request: bytes) -> None:
    while sock.recv(65536):
        pass


def drip(sock: socket.socket, request: bytes) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n")
    waiting = threading.Event()
    while True:
        sock.sendall(b"#")
        waiting.wait(0.01)


def flood(sock: socket.socket, request: bytes) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        sock.sendall(b"a 1\n" * 16_384)


FAILURES: dict[str, tuple[Act, str]] = {
    "not found": (says(http("no", "404 Not Found")), "HTTP 404"),
    "broken": (says(http("no", "500 Internal Server Error")), "HTTP 500"),
    "moved": (says(http("", "307 Temporary Redirect", more="Location: http://u:pw@elsewhere/m\r\n")), "name that URL"),
    "page": (says(http("<html>welcome</html>", kind="text/html")), "an HTML page"),
    "page as text": (says(http("<html>welcome</html>")), "line 1 of its answer is no metric: '<html>"),
    "json": (says(http('{"a": 1}', kind="application/json")), "line 1 of its answer is no metric"),
    "binary": (says(http(bytes(range(256)) * 40)), "is no metric"),
    "half garbage": (says(http("a 1\nb 2\n\x7fELF\n")), "line 3 of its answer is no metric"),
    "empty": (says(http("")), "no metric in its answer"),
    "comments": (says(http("# HELP a b\n# TYPE a gauge\n")), "no metric in its answer"),
    "gzip": (says(http(b"\x1f\x8b\x08\x00" + b"\x99" * 60, more="Content-Encoding: gzip\r\n")), "is no metric"),
    "cut": (says(http("a 1\n" * 100)[:-50]), "no whole HTTP answer"),
    "not http": (says(b"220 smtp.example.com ESMTP\r\n"), "no whole HTTP answer"),
    "closed": (says(b""), "no whole HTTP answer"),
    "huge": (says(http("a 1\n" * 1_100_000)), "more than 4 MB"),
    "endless": (flood, "more than 4 MB"),
    "hangs": (hang, "no whole answer within 0.2 s"),
    "drips": (drip, "no whole answer within 0.2 s"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_endpoint_without_metrics_is_named_once_and_counted(
    start: Callable[..., Scraper],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    act, why = FAILURES[name]
    if name in ("hangs", "drips"):
        monkeypatch.setattr(scraping, "TIMEOUT_S", 0.2)
    with exporter(act) as target:
        scraper = start(target.url)
        scraped(scraper, 2)
        told = scraper.stop()[target.url]
    assert why in told["last_error"]
    assert told["failed"] == told["scrapes"] >= 2
    assert told["series"] == 0
    assert [(record.levelname, why in record.getMessage()) for record in caplog.records] == [("WARNING", True)]
    line = caplog.records[0].getMessage()
    assert target.url in line
    assert "\n" not in line
    assert "pw@" not in line
    assert read_scraped(tmp_path).empty


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:{port}/metrics", "Connection refused"),
        ("http://no-such-host.invalid/metrics", ""),
        ("http://" + "a" * 70 + ".example/metrics", ""),
        ("http://127.0.0.1//m?token=s3cret", "[redacted]"),
    ],
    ids=["refused", "no address", "no name", "no path"],
)
def test_nobody_there_is_a_failure_with_its_reason(start: Callable[..., Scraper], url: str, why: str) -> None:
    url = url.format(port=free_port())
    scraper = start(url)
    scraped(scraper, 1)
    (told,) = scraper.stop().values()
    assert told["failed"] >= 1
    assert told["last_error"]
    assert why in told["last_error"]
    assert "s3cret" not in told["last_error"]


def test_an_endpoint_that_dies_and_returns_leaves_a_gap_and_two_lines(
    start: Callable[..., Scraper], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cicada")
    act = Counting()
    with exporter(act) as target:
        scraper = start(target.url)
        scraped(scraper, 2)
    endpoint = scraper._endpoints[0]
    until(lambda: endpoint.failing >= 3, "three failed scrapes")
    before = act.asked
    with exporter(act, target.port):
        until(lambda: act.asked >= before + 2 and not endpoint.failing, "it is back")
        told = scraper.stop()[target.url]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "refused" in lines[0][1] or "no whole HTTP answer" in lines[0][1]
    assert f"back after {told['failed']} failed scrapes" in lines[1][1]
    assert told["last_error"]
    values = list(read_scraped(tmp_path)["value"])
    assert values == sorted(values)
    assert min(values) == 1
    assert max(values) > before


def test_an_endpoint_that_hangs_holds_up_nobody(start: Callable[..., Scraper], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "TIMEOUT_S", WITHIN_S)
    act = Counting()
    with exporter(hang) as slow, exporter(act) as target:
        scraper = start(slow.url, target.url)
        scraped(scraper, 10, of=1)
        told = scraper.stop()
        assert len(slow.requests) == 1, "its first scrape was still waiting"
        assert told[slow.url]["scrapes"] == told[slow.url]["failed"] == 0, "and ended with the run"
        assert told[target.url]["failed"] == 0
        assert act.asked >= 10


def test_reading_much_lets_others_have_their_turn(
    start: Callable[..., Scraper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces of one answer the loop runs: counted in pieces, not in seconds."""
    pieces: list[int] = []
    turns: list[int] = []
    others = [0]
    reads = Exposition.read

    def counted(self: Exposition, lines: list[str]) -> list[Sample]:
        pieces.append(len(lines))
        turns.append(others[0])
        return reads(self, lines)

    monkeypatch.setattr(Exposition, "read", counted)

    def other() -> None:
        while True:
            others[0] += 1
            gevent.sleep(0)

    ticking = gevent.spawn(other)
    with exporter(says(http("a 1\n" * 10_000))) as target:
        scraper = start(target.url)
        scraped(scraper, 1)
        scraper.stop()
    ticking.kill()
    assert max(pieces) <= 200
    assert all(later > earlier for earlier, later in itertools.pairwise(turns[:50]))


def test_a_full_disk_ends_the_scraping_and_not_the_run(
    start: Callable[..., Scraper], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Recorder, table: str, row: list[Any]) -> None:
        raise LogFull(28, "No space left on device")

    monkeypatch.setattr(Recorder, "append", full)
    with exporter(says(http("a 1\nb 2\n"))) as target:
        scraper = start(target.url)
        until(lambda: all(greenlet.dead for greenlet in scraper._greenlets), "the scraping is over")
        told = scraper.stop()[target.url]
    assert told["last_error"] == "cannot be recorded: No space left on device"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_certificate_nobody_knows_is_refused_until_insecure(start: Callable[..., Scraper], tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with exporter(says(http("a 1\n")), tls=context) as target:
        url = target.url.replace("http:", "https:")
        refusing = start(url)
        scraped(refusing, 1)
        told = refusing.stop()[url]
        assert told["failed"] >= 1
        assert "--insecure" in told["last_error"]
        (tmp_path / schema.METRICS_LOG).unlink()
        trusting = start(url, insecure=True)
        until(lambda: trusting._endpoints[0].series, "metrics over TLS")
        assert trusting.stop()[url]["failed"] == 0


# ------------------------------------------------------------------------------------------------------- the table


def write_log(run_dir: Path, rows: list[list[Any]]) -> Path:
    path = run_dir / schema.METRICS_LOG
    recorder = Recorder(path, {"run": "r1"})
    for row in rows:
        recorder.append("metrics", row)
    recorder.close()
    return path


def rows_of(text: str, at: float, endpoint: str = "http://h:8000/metrics") -> list[list[Any]]:
    return [["r1", endpoint, one.metric, one.labels, one.kind, one.value, at] for one in read(text)]


def test_the_table_is_made_anew_only_when_its_log_has_grown(tmp_path: Path) -> None:
    path = write_log(tmp_path, rows_of("a 1\n", 5.0))
    shard = tmp_path / "server" / "metrics" / "scraped.parquet"
    shards.seal(tmp_path)
    made = shard.stat()
    shards.seal(tmp_path)
    assert shard.stat().st_mtime_ns == made.st_mtime_ns
    with path.open("ab") as file:
        file.write(msgpack.packb(["metrics", *rows_of("a 2\n", 6.0)[0]]))
    shards.seal(tmp_path)
    assert list(pq.read_table(shard).column("value").to_pylist()) == [1.0, 2.0]
    shard.write_bytes(b"no parquet")
    assert list(read_scraped(tmp_path)["value"]) == [1.0, 2.0]


def test_the_table_is_no_part_of_the_servers_rows(tmp_path: Path) -> None:
    write_log(tmp_path, rows_of("a 1\n", 5.0))
    shards.seal(tmp_path)
    assert read_table(tmp_path, "server").empty
    assert not list((tmp_path / "server").glob("*.parquet"))


def test_spoilt_rows_and_bytes_cost_themselves_only(tmp_path: Path) -> None:
    good = rows_of("a 1\nb 2\n", 5.0)
    path = write_log(tmp_path, [good[0], ["r1", "e", "x", "", "gauge", "two", 5.0], good[1]])
    with path.open("ab") as file:
        file.write(b"\xc1" * 99 + msgpack.packb(["metrics", *good[0]]) + b"\x97\xa7met")
    assert list(read_scraped(tmp_path)["metric"]) == ["a", "b", "a"]


def test_a_log_of_somebody_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / schema.METRICS_LOG
    path.parent.mkdir()
    path.write_text("a 1\n")
    assert "server/metrics.msgpack is not a Cicada log" in shards.seal(tmp_path).refused[schema.METRICS_LOG]
    assert read_scraped(tmp_path).empty


def test_a_run_without_metrics_has_an_empty_table_with_its_columns(tmp_path: Path) -> None:
    frame = read_scraped(tmp_path)
    assert frame.empty
    assert list(frame.columns) == schema.names("metrics")
    for role in ROLES:
        found = series(frame, role)
        assert found.empty
        assert list(found.columns) == list(COLUMNS)


# ------------------------------------------------------------------------------------------------ what metrics mean


def meant(run_dir: Path, rows: list[list[Any]], role: str) -> list[tuple[Any, ...]]:
    write_log(run_dir, rows)
    found = series(read_scraped(run_dir), role)
    assert list(found.columns) == list(COLUMNS)
    return list(found.itertuples(index=False, name=None))


LLAMA = "unsloth/Llama-3.2-1B-Instruct, h:8000"
STAGES = 'gpu_server_queue_depth 4\ngpu_server_stage_waiting{stage="asr"} 2\ngpu_server_stage_busy{stage="asr"} 1\n'
TRITONS_GPU = "GPU GPU-7a9c9f44-ff57-1177-e21a-1740a8cf1a65, h:8000"


@pytest.mark.parametrize(
    ("role", "text", "expected"),
    [
        ("queue_depth", VLLM, [(5.0, LLAMA, "llm", 3.0)]),
        ("running", VLLM, [(5.0, LLAMA, "llm", 8.0)]),
        ("kv_cache_share", VLLM, [(5.0, LLAMA, "llm", 0.125)]),
        ("queue_depth", TRITON, [(5.0, "fastpitch, h:8000", "fastpitch", 0), (5.0, "parakeet, h:8000", "parakeet", 7)]),
        ("gpu_busy_share", TRITON, [(5.0, TRITONS_GPU, "", 0.25)]),
        ("gpu_memory_bytes", TRITON, [(5.0, TRITONS_GPU, "", 3 * 2**20)]),
        ("gpu_busy_share", DCGM, [(5.0, "GPU 0, h:8000", "", 0.5)]),
        ("gpu_memory_bytes", DCGM, [(5.0, "GPU 0, h:8000", "", 4845 * 2**20)]),
        ("queue_depth", STAGES, [(5.0, "asr, h:8000", "asr", 2.0), (5.0, "speech, h:8000", "tts", 4.0)]),
        ("running", STAGES, [(5.0, "asr, h:8000", "asr", 1.0)]),
        ("queue_depth", 'num_requests_waiting{model_name="nim"} 6\n', [(5.0, "nim, h:8000", "llm", 6.0)]),
        ("batch_size", TRITON, []),  # one scrape: nothing has risen yet
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_each_source_plays_its_roles_in_one_unit(
    tmp_path: Path, role: str, text: str, expected: list[tuple[Any, ...]]
) -> None:
    assert meant(tmp_path, rows_of(text, 5.0), role) == expected


def test_batch_size_is_the_rise_of_inferences_over_that_of_executions(tmp_path: Path) -> None:
    counts = [(1.0, 10, 5), (2.0, 30, 9), (3.0, 30, 9), (4.0, 4, 2), (5.0, 12, 3), (6.0, 2, 4)]
    # Idle in 3, begun anew in 4 and in 6, where executions happen to stand higher.
    rows = [
        row
        for at, inferences, executions in counts
        for row in rows_of(
            f'nv_inference_count{{model="m",version="1"}} {inferences}\n'
            f'nv_inference_exec_count{{model="m",version="1"}} {executions}\n',
            at,
        )
    ]
    assert meant(tmp_path, rows, "batch_size") == [(2.0, "m, h:8000", "m", 5.0), (5.0, "m, h:8000", "m", 8.0)]


def test_series_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    text = "".join(f'vllm:num_requests_waiting{{engine="{n}",model_name="m"}} {n}\n' for n in (0, 1))
    rows = rows_of(text, 1.0) + rows_of(text, 1.5, "http://[redacted]@k:9/v1/metrics")
    assert [(name, value) for _, name, _, value in meant(tmp_path, rows, "queue_depth")] == [
        ("m (engine 0), h:8000", 0.0),
        ("m (engine 0), k:9/v1", 0.0),
        ("m (engine 1), h:8000", 1.0),
        ("m (engine 1), k:9/v1", 1.0),
    ]


def test_labels_are_read_as_they_were_meant() -> None:
    (sample,) = read(r'a{x="a \"quoted\", \\ and\nnew",y=""} 1')
    assert read_labels(sample.labels) == {"x": 'a "quoted", \\ and\nnew', "y": ""}


# --------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.usefixtures("quick")
def test_the_collector_asks_and_tells_without_credentials(tmp_path: Path) -> None:
    with exporter(Counting()) as target:
        url = f"http://me:s3cret@127.0.0.1:{target.port}"
        scenario = build({"metrics": [url]})
        (tmp_path / "log").mkdir()
        collector = Collector(tmp_path, opening("r1", None, scenario.model_dump(mode="json"), 1, ["locust"]))
        until(lambda: len(target.requests) >= 3, "three requests")
        collector.finish()
    told = json.loads((tmp_path / "run.json").read_text())
    name = f"http://[redacted]@127.0.0.1:{target.port}/metrics"
    assert told["scenario"]["metrics"] == [name]
    assert told["metrics_endpoints"][name]["scrapes"] >= 3
    assert told["metrics_endpoints"][name]["failed"] == 0
    assert "s3cret" not in (tmp_path / "run.json").read_text()
    assert (tmp_path / "server" / "metrics" / "scraped.parquet").exists(), "python -m workers seal made it"


def test_a_run_without_endpoints_has_no_trace_of_them(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    collector = Collector(tmp_path, opening("r1", None, build({}).model_dump(mode="json"), 1, ["locust"]))
    collector.finish()
    assert not (tmp_path / "server").exists()
    assert "metrics_endpoints" not in json.loads((tmp_path / "run.json").read_text())


def test_a_run_shows_the_queue_that_its_users_made(tmp_path: Path) -> None:
    """Five users, one stream, and answers that outlast the run: one is served, four wait, and the server says so."""
    dead = f"http://127.0.0.1:{free_port()}/metrics"
    with running_server("--engine", "tone", "--streams", "1", "--tone-seconds", "30", "--pace", "50,1") as server:
        run = run_locust(
            "--headless", "--users", "5", "--spawn-rate", "5", "--run-time", "4s", "--drain-s", "0",
            "--host", server.url, "--metrics", server.url, dead, "-f", SPEAK, cwd=tmp_path,
        )  # fmt: skip
    assert "Traceback" not in run.said, run.said
    assert run.said.count(f"no metrics of {dead}") == 1
    (run_dir,) = run_dirs(tmp_path)
    told = json.loads((run_dir / "run.json").read_text())["metrics_endpoints"]
    assert set(told) == {f"{server.url}/metrics", dead}
    alive = told[f"{server.url}/metrics"]
    assert alive["scrapes"] >= 3
    assert alive["failed"] == 0
    assert alive["series"] > 5
    assert told[dead]["failed"] == told[dead]["scrapes"] >= 3
    assert "refused" in told[dead]["last_error"]
    frame = read_scraped(run_dir)
    place = server.url.removeprefix("http://")
    queue = series(frame, "queue_depth")
    queue = queue[queue["name"] == f"speech, {place}"]
    assert queue["value"].max() == 4
    running = series(frame, "running")
    assert running[running["name"] == f"speech, {place}"]["value"].max() == 1
    assert isinstance(frame, pd.DataFrame)
