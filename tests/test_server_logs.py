"""S3's analyser: real logs against figures counted by grep, made logs line form by line form."""

import csv
import random
import tracemalloc
from pathlib import Path

import pytest

from analysis import log_lines
from analysis.log_clients import survey
from analysis.log_lines import Figure, LogReader
from analysis.server_logs import EmptyLog, analyse, main

LOGS = Path(__file__).parent / "logs"
NVIDIA = LOGS / "nvidia_bot_two_clients.log"
STOCK = LOGS / "pipecat_1.14_three_sessions.log"
COMPOSE = LOGS / "nvidia_bot_docker_compose.log"
ONE, TWO = "client_1_1795166292330", "client_2_1795166292434"

HEAD = "2026-11-20 09:18:12.970 | DEBUG    | pipecat.metrics:stop:175 | "
# (what stands in the line, component, metric, value)
FORMS = [
    ("streamId=x - NvidiaLLMService#0 TTFB: 0.28341794013977051", "llm", "ttfb", 0.28341794013977051),
    ("streamId=x - NvidiaLLMService#0 TTFB: 9.5e-05", "llm", "ttfb", 9.5e-05),
    ("streamId=x - AcmeLLMService#0 TTFB: 0.200s", "llm", "ttfb", 0.2),
    ("streamId=x - NemotronASRService#0 ASR compute latency: 0.128", "asr", "compute_latency", 0.128),
    ("streamId=x - RivaSTTService#0 ASR compute latency: 1.5E-2", "asr", "compute_latency", 0.015),
    ("streamId=x - NvidiaLLMService#0 LLM first sentence generation time: 0.412", "llm", "first_sentence", 0.412),
    ("streamId=x - NemotronTTSService#12 TTFB: 0.152s", "tts", "ttfb", 0.152),
    ("streamId=x - AcmeTTSService#0 TTFA: 0.155s (0.000s leading silence)", "tts", "ttfa", 0.155),
    ("streamId=x - AcmeSTTService#0 TTFB: 0.303s", "asr", "ttfb_with_vad_wait", 0.303),
    ("streamId=x - AcmeTTSService#0 processing time: 0.151s", "tts", "processing", 0.151),
    ("streamId=x - AcmeLLMService#0 prompt tokens: 96, completion tokens: 17", "llm", "completion_tokens", 17.0),
]


def read(tmp_path: Path, text: str | bytes) -> tuple[list[Figure], LogReader]:
    path = tmp_path / "bot.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    reader = LogReader(path)
    return list(reader.figures()), reader


def line(text: str, at: str = "09:18:12.970") -> str:
    return f"2026-11-20 {at} | DEBUG    | m:f:1 | {text}\n"


def stock(text: str, at: str = "09:18:12.970") -> str:
    return f"2026-11-20 {at} | DEBUG    | m:f:1 - {text}\n"


# --------------------------------------------------------------------------------------------------------- line forms


@pytest.mark.parametrize("form", FORMS, ids=[form[0][11:48] for form in FORMS])
@pytest.mark.parametrize("dress", ["plain", "compose", "coloured", "windows", "stock"])
def test_every_line_form_is_read(tmp_path: Path, form: tuple[str, str, str, float], dress: str) -> None:
    text, component, metric, value = form
    whole = f"{HEAD}{text}"
    if dress == "compose":
        whole = f"python-app-1  | {whole}"
    elif dress == "coloured":
        whole = "\x1b[32m" + HEAD + "\x1b[0m" + text.replace(" - ", " - \x1b[34m\x1b[1m") + "\x1b[0m"
    elif dress == "windows":
        whole += "\r"
    elif dress == "stock":
        whole = f"{HEAD[:-3]} - {text.partition(' - ')[2]}"
    figures, reader = read(tmp_path, whole + "\n")
    assert [(figure.component, figure.metric) for figure in figures] == [(component, metric)]
    found = figures[0].value_s if figures[0].value_s is not None else figures[0].value
    assert found == value
    assert figures[0].stream_id == (None if dress == "stock" else "x")
    assert figures[0].at == pytest.approx(1_795_166_292.970)
    assert (reader.bad_lines, reader.lines) == (0, 1)


def test_tokens_a_second_come_from_the_tokens_before_a_processing_time(tmp_path: Path) -> None:
    figures, _ = read(
        tmp_path,
        line("streamId=a - XLLMService#0 prompt tokens: 9, completion tokens: 17")
        + line("streamId=b - XLLMService#1 prompt tokens: 9, completion tokens: 30")
        + line("streamId=a - XTTSService#0 processing time: 9.0s")
        + line("streamId=a - XLLMService#0 processing time: 0.5s")
        + line("streamId=b - XLLMService#1 processing time: 2.0s")
        + line("streamId=b - XLLMService#1 processing time: 4.0s"),
    )
    rates = [(figure.stream_id, figure.value) for figure in figures if figure.metric == "tokens_per_s"]
    assert rates == [("a", 34.0), ("b", 15.0)]


def test_leading_silence_is_a_figure_of_its_own_where_there_is_any(tmp_path: Path) -> None:
    figures, _ = read(tmp_path, line("streamId=a - XTTSService#0 TTFA: 0.205s (0.050s leading silence)"))
    assert [(figure.metric, figure.value_s) for figure in figures] == [("ttfa", 0.205), ("leading_silence", 0.05)]


def test_zeros_before_the_first_call_are_skipped(tmp_path: Path) -> None:
    zeros = "".join(
        line(f"streamId=a - X{kind}Service#0 TTFB: {zero}") for kind in ("LLM", "TTS") for zero in ("0.0", "0.000s")
    )
    figures, reader = read(tmp_path, zeros + line("streamId=a - XLLMService#0 TTFB: 0.2"))
    assert (len(figures), reader.zeros, reader.bad_lines) == (1, 4, 0)


BROKEN = [
    line("streamId=a - XLLMService#0 TTFB: 0.2E"),
    line("streamId=a - XLLMService#0 TTFB: nan"),
    line("streamId=a - XLLMService#0 TTFB: -0.5s"),
    line("streamId=a - XLLMService#0 TTFB:"),
    line("streamId=a - XLLMService#0 TTFB: 0.2garbage"),
    line("streamId=a - XLLMService#0 prompt tokens: 96, completi"),
    "\x00\x00\x00\x00\n",
    "x" * (log_lines.LONGEST_LINE_BYTES + log_lines.BLOCK_BYTES) + "\n",
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_counted_and_the_next_one_read(tmp_path: Path, broken: str) -> None:
    figures, reader = read(tmp_path, broken + line("streamId=a - XLLMService#0 TTFB: 0.25"))
    assert [figure.value_s for figure in figures] == [0.25]
    assert reader.bad_lines == 1


def test_bytes_that_are_no_utf8_are_counted(tmp_path: Path) -> None:
    figures, reader = read(tmp_path, b"\xff\xfe\x80 noise\n" + line("streamId=a - XLLMService#0 TTFB: 0.25").encode())
    assert (len(figures), reader.bad_lines) == (1, 1)


def test_half_a_line_at_the_end_is_no_figure(tmp_path: Path) -> None:
    whole = line("streamId=a - XLLMService#0 TTFB: 0.25") * 2
    for cut in range(1, len(whole) // 2):
        figures, reader = read(tmp_path, whole[:-cut])
        assert (len(figures), reader.bad_lines) == (1, 1), whole[:-cut]


def test_no_garbage_ends_it(tmp_path: Path) -> None:
    """Bytes changed, lines cut and joined, digits without end: what can be read is read, and nothing is raised."""
    whole, path = bytearray(NVIDIA.read_bytes()), tmp_path / "bot.log"
    draw = random.Random(7)
    for _ in range(40):
        spoilt = bytearray(whole)
        for _ in range(300):
            spoilt[draw.randrange(len(spoilt))] = draw.choice(b"\n\0\xff#9:. s-|\x1b")
        for _ in range(3):
            at = draw.randrange(len(spoilt))
            spoilt[at:at] = draw.choice((b"#", b": ", b"tokens: 9, completion tokens: ")) + b"9" * 5_000
        path.write_bytes(spoilt)
        found = analyse(path, everything=True)
        assert 0 < found.counted <= 99 + 3


def test_a_line_that_begins_with_its_level_has_no_prefix(tmp_path: Path) -> None:
    text = (
        accepted("a")
        + accepted("b")
        + "DEBUG | m:f:1 - XLLMService#1 TTFB: 0.2s\nINFO | m:f:1 - XLLMService#0 TTFB: 0.1s\n"
    )
    assert clients_of(tmp_path, text) == {"a": 100.0, "b": 200.0}


def test_words_in_a_message_are_no_figure(tmp_path: Path) -> None:
    figures, reader = read(
        tmp_path,
        line("streamId=a - XTTSService#0: Generating TTS [my XLLMService#0 TTFB: 9.0s]")
        + line("streamId=a - UserIdleProcessor#0 TTFB: 9.0s"),
    )
    assert (figures, reader.bad_lines) == ([], 0)


@pytest.mark.parametrize("block", [64, 200, 1000])
def test_blocks_split_lines_anywhere(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole = list(LogReader(NVIDIA).figures())
    monkeypatch.setattr(log_lines, "BLOCK_BYTES", block)
    reader = LogReader(NVIDIA)
    assert [figure._replace(offset=0) for figure in reader.figures()] == [figure._replace(offset=0) for figure in whole]
    assert (reader.lines, reader.bad_lines) == (300, 0)


# ---------------------------------------------------------------------------------------- real logs, counted by grep


def test_nvidias_log_says_what_grep_counts() -> None:
    summary = analyse(NVIDIA, everything=True).tally.summary()
    one, two = summary["clients"][ONE], summary["clients"][TWO]
    assert one["calls"] == {"llm": 5, "tts": 4, "asr": 4}
    assert two["calls"] == {"llm": 4, "tts": 4, "asr": 3}
    assert one["llm_ttfb_ms"] == pytest.approx(201.2)
    assert summary["calls"] == {"llm": 9, "tts": 8, "asr": 7}
    overall = summary["overall"]
    assert overall["llm_ttfb_ms"]["mean"] == pytest.approx(201.111, abs=0.001)
    # 200 201 201 201 201 201 201 202 202; 152 152 152 152 153 153 154 155
    assert overall["llm_ttfb_ms"]["p95_calls"] == pytest.approx(202.0)
    assert overall["tts_ttfb_ms"]["mean"] == pytest.approx(152.875)
    assert overall["tts_ttfb_ms"]["p95_calls"] == pytest.approx(154.65)
    assert overall["asr_ms"]["mean"] == pytest.approx(100.0)
    assert overall["llm_first_sentence_ms"]["p95_calls"] == pytest.approx(202.6)
    one_rate = (17 / 0.202 + 12 / 0.201 + 12 / 0.203 + 17 / 0.201 + 12 / 0.202) / 5
    assert one["llm_tokens_per_s"] == pytest.approx(one_rate)
    assert overall["llm_ttfb_ms"]["mean_of_clients"] == pytest.approx((201.2 + 201.0) / 2)
    assert overall["llm_ttfb_ms"]["p95_of_clients"] == pytest.approx(201.0 + 0.95 * 0.2)


def test_only_what_follows_the_last_clients_start_counts() -> None:
    found = analyse(NVIDIA)
    assert found.tally.summary()["calls"]["llm"] == 8  # awk 'NR>52' | grep
    assert found.earlier == 9


def test_stock_pipecats_instances_belong_to_clients_in_order_of_connection() -> None:
    clients = analyse(STOCK, everything=True).tally.summary()["clients"]
    assert {name: client["calls"] for name, client in clients.items()} == {
        f"session-{n}": {"llm": 3, "tts": 3, "asr": 3} for n in range(3)
    }
    assert clients["session-0"]["tts_ttfb_ms"] == pytest.approx((155 + 152 + 153) / 3)
    assert clients["session-2"]["asr_ttfb_ms"] == pytest.approx((301 + 302 + 302) / 3)
    assert clients["session-1"]["asr_ms"] is None  # stock pipecat logs no compute latency


def test_a_compose_log_is_read() -> None:
    clients = analyse(COMPOSE, everything=True).tally.summary()["clients"]
    assert {name: client["calls"] for name, client in clients.items()} == {ONE: {"llm": 1, "tts": 1, "asr": 0}}


# ------------------------------------------------------------------------------------------------ whose an instance is


def accepted(stream: str | None = None, at: str = "09:18:12.970") -> str:
    path = f"/ws/{stream}" if stream else "/ws"
    return f'INFO:     127.0.0.1:1 - "WebSocket {path}" [accepted]\n' + stock("Client connected", at)


def clients_of(tmp_path: Path, text: str) -> dict[str, float | None]:
    path = tmp_path / "bot.log"
    path.write_text(text)
    return {name: row["llm_ttfb_ms"] for name, row in analyse(path, everything=True).tally.summary()["clients"].items()}


def test_uvicorns_path_names_the_stream(tmp_path: Path) -> None:
    text = accepted("kim") + accepted("lee") + stock("XLLMService#1 TTFB: 0.2s") + stock("XLLMService#0 TTFB: 0.1s")
    assert clients_of(tmp_path, text) == {"kim": 100.0, "lee": 200.0}


def test_a_connection_told_of_twice_is_one(tmp_path: Path) -> None:
    text = "".join(f'INFO: 1.2.3.4:{n} - "WebSocket /ws" [accepted]\n' for n in range(2))
    text += "".join(stock(f"Accepted WebSocket connection for stream ID s{n}") for n in range(2))
    path = tmp_path / "bot.log"
    path.write_text(text + stock("XLLMService#0 TTFB: 0.1s") + stock("XLLMService#1 TTFB: 0.2s"))
    assert [client.stream_id for client in survey(path).clients] == ["s0", "s1"]


def test_a_service_nobody_called_keeps_its_place(tmp_path: Path) -> None:
    links = "".join(stock(f"Linking A#{n} -> XLLMService#{n}") for n in range(3))
    text = "".join(accepted(name) for name in "abc") + links + stock("XLLMService#2 TTFB: 0.3s")
    assert clients_of(tmp_path, text) == {"c": 300.0}


def test_two_services_of_a_class_in_each_session(tmp_path: Path) -> None:
    text = accepted("a") + accepted("b") + "".join(stock(f"XLLMService#{n} TTFB: 0.{n + 1}s") for n in range(4))
    assert clients_of(tmp_path, text) == {"a": pytest.approx(150.0), "b": pytest.approx(350.0)}


def test_a_restarted_server_counts_from_0_again(tmp_path: Path) -> None:
    begun = "INFO:     Started server process [1]\n"
    text = (
        begun
        + accepted("a")
        + stock("XLLMService#0 TTFB: 0.1s")
        + begun
        + accepted("b")
        + stock("XLLMService#0 TTFB: 0.2s")
    )
    assert clients_of(tmp_path, text) == {"a": 100.0, "b": 200.0}


def test_replicas_in_one_compose_log_number_for_themselves(tmp_path: Path) -> None:
    lines = [
        'app-1  | INFO: "WebSocket /ws/a" [accepted]\n',
        'app-2  | INFO: "WebSocket /ws/b" [accepted]\n',
        "app-2  | " + stock("XLLMService#0 TTFB: 0.2s"),
        "app-1  | " + stock("XLLMService#0 TTFB: 0.1s"),
    ]
    assert clients_of(tmp_path, "".join(lines)) == {"a": 100.0, "b": 200.0}


def test_instances_that_cannot_be_given_to_a_client_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bot.log"
    path.write_text(accepted("a") + accepted("b") + "".join(stock(f"XLLMService#{n} TTFB: 0.2s") for n in (4, 5, 6)))
    found = analyse(path, everything=True)
    assert found.unknown == {"3 instances of XLLMService and 2 connections: whose is whose is unknown": 3}
    assert found.counted == 3


# --------------------------------------------------------------------------------------------------- the command line


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_has_s3s_columns(capsys: pytest.CaptureFixture[str], width: int) -> None:
    status, page, errors = run_main(capsys, NVIDIA, "--all", "--width", width)
    assert (status, errors) == (0, "")
    assert max(map(len, page.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in page
    words = " ".join(page.split())
    for title in ("LLM TTS ASR ASR LLM Calls", "TTFB TTFB Lat TTFB* 1st tokens/s", "P95 over calls 202.0 154.7"):
        assert title in words, title
    assert f"{ONE} 201.2 152.8 100.0 301.8 201.4 69.4 5 4 4" in words
    assert "the wait of the voice activity detector is in it" in words


def test_what_is_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, page, _ = run_main(capsys, NVIDIA)
    assert "9 figures (9%) came before the last client's start and are left out" in " ".join(page.split())


def test_figures_go_into_a_csv_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, page, _ = run_main(capsys, STOCK, "--all", "--csv", tmp_path / "figures.csv")
    assert status == 0
    assert "Written: " in page
    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    ttfb = [row for row in rows if row["component"] == "llm" and row["metric"] == "ttfb"]
    assert [row["client"] for row in ttfb].count("session-1") == 3
    assert {row["instance"] for row in ttfb if row["client"] == "session-1"} == {"AcmeLLMService#1"}


def test_no_figures_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.log").write_text("")
    (tmp_path / "other.log").write_text("hello\n" * 5)
    (tmp_path / "quiet.log").write_text(accepted("a"))
    for name, says in (
        ("gone.log", "No such file"),
        ("empty.log", "is empty"),
        ("other.log", "no TTFB, latency or token figure"),
        ("quiet.log", "1 clients came"),
        (".", "is a directory"),
    ):
        status, page, errors = run_main(capsys, tmp_path / name)
        assert (status, page) == (2, "")
        assert errors.count("\n") == 1
        assert says in errors


def test_a_log_of_zeros_alone_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "bot.log"
    path.write_text(line("streamId=a - XLLMService#0 TTFB: 0.0"))
    with pytest.raises(EmptyLog):
        analyse(path)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for words in ("docker compose logs -f", "LLM 1st", "--all", "P95 over calls"):
        assert words in told


def test_a_large_log_is_read_in_little_memory(tmp_path: Path) -> None:
    """Forty megabytes, nearly all of it chatter: what is kept are the figures, not the lines. (1 GB: 9 s, 85 MB.)"""
    path = tmp_path / "bot.log"
    chatter = line("streamId=x - nothing that anybody measures" + " and more" * 20) * 2_000
    with path.open("w") as file:
        for _ in range(80):
            file.write(chatter + line("streamId=x - NvidiaLLMService#0 TTFB: 0.25"))
    assert path.stat().st_size > 35e6
    tracemalloc.start()
    try:
        found = analyse(path, everything=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.counted == 80
    assert peak_bytes < 8e6
