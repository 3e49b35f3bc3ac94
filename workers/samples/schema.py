"""What a row is: tables, columns, types, for every protocol. Knows nothing of files, sockets or clocks.

A log file (`log/<worker>.msgpack`) is a sequence of msgpack values, appended and never rewritten:

    first   {"cicada": SCHEMA_VERSION, "tables": {table: [column, ...]}, "worker": {...facts...}}
    then    [table, value, value, ...]      values in the order the first record gives; trailing nulls left out

`worker` facts: run, worker, index, host, boot_id, pid, spool (path of the file), wall_at (unix seconds) and
monotonic_at (seconds), read together: wall = wall_at + (instant - monotonic_at).

Instants end `_at`: CLOCK_MONOTONIC seconds of the worker's host. Durations end `_s`: seconds.
"""

from typing import Literal, NamedTuple

SCHEMA_VERSION = 5

Kind = Literal["str", "int", "float", "bool", "floats"]

PREBUFFERS_MS = (0, 20, 60, 100, 200)

OUTCOMES = ("answered", "timed_out", "early", "cut", "protocol_error", "disconnected", "refused")
ANSWERS = ("answered", "early")  # with no error_kind: a success; early is one that overlapped the user's words
METRICS_LOG = "server/metrics.msgpack"  # in the run directory: a log of rows of METRICS, which the master writes
CENSORED = "cut"  # we ended the turn, not the server: neither a success nor a failure


class Column(NamedTuple):
    """A column: its name, its kind, and what it holds (with unit and clock)."""

    name: str
    kind: Kind
    doc: str


def _columns(text: str) -> tuple[Column, ...]:
    rows = (line.split(None, 2) for line in text.strip().splitlines())
    return tuple(Column(name, kind, doc) for name, kind, doc in rows)  # type: ignore[arg-type]


TURNS = _columns(
    """
run                    str    run id
worker                 str    which worker process
session                str    which user or connection; intervals are clustered by it
turn                   int    ordinal of the turn in its session, from 0
protocol               str    http_tts, voice_agent, personaplex
dialect                str    openai, openai_sse, synthesize ...
scenario               str    name of the scenario
request_id             str    sent as X-Request-ID; joins the server's rows
text_name              str    which text or query
text_chars             int    input characters
voice                  str    voice asked for
phase                  str    warm_up or measured
level                  int    users of the load level that the turn began in; null where the run has no levels
clock                  str    kernel: arrivals stamped by the kernel; user: by this process
outcome                str    one of OUTCOMES
error_kind             str    null on success; else the kind of failure
error                  str    one line for people
status                 int    HTTP status
intended_at            float  when the turn was due to start
sent_at                float  when its first byte was handed to the kernel
ready_at               float  when the connection was ready (connected, TLS done)
first_chunk_at         float  arrival of the first byte of audio payload (no container header)
first_audio_at         float  when a listener first hears something: first audible sample, at playout
first_token_at         float  arrival of the first text token
last_chunk_at          float  arrival of the last byte of audio payload
ended_at               float  when the turn was over, however it ended
user_offset_at         float  the user's last voiced sample
agent_onset_at         float  the agent's first voiced sample, at playout
agent_offset_at        float  the agent's last voiced sample, at playout
first_chunk_width_s    float  first_chunk_at is exact, or early by at most this (arrival interval)
first_audio_width_s    float  the same for first_audio_at
flagged                bool   an arrival interval wider than 1 ms stands behind ttfc_s or ttfa_s
connection_new         bool   this turn opened its connection
audio_s                float  decoded samples / sample rate
sample_rate            int    of the decoded audio, Hz
audio_bytes            int    audio payload as received (container included)
wire_bytes             int    bytes read from the socket for this turn (headers and framing included)
chunks                 int    arrivals that carried audio
largest_gap_s          float  longest wait between two such arrivals
ttfc_s                 float  first_chunk_at - intended_at; in a conversation - user_offset_at
ttfa_s                 float  first_audio_at - intended_at; in a conversation - user_offset_at
e2e_s                  float  last_chunk_at - intended_at; in a conversation - user_offset_at
rtf                    float  (last_chunk_at - sent_at) / audio_s; null in a conversation
floor_transfer_offset_s float agent_onset_at - user_offset_at, signed
min_prebuffer_s        float  smallest prebuffer that plays without a stall
stall_count_0ms        int    underruns (of 1 ms or more; in a conversation 20 ms) at prebuffer 0 ms
stall_s_0ms            float  total stall at prebuffer 0 ms
stall_longest_s_0ms    float  longest stall at prebuffer 0 ms
stall_count_20ms       int    as above, prebuffer 20 ms
stall_s_20ms           float  as above, prebuffer 20 ms
stall_longest_s_20ms   float  as above, prebuffer 20 ms
stall_count_60ms       int    as above, prebuffer 60 ms
stall_s_60ms           float  as above, prebuffer 60 ms
stall_longest_s_60ms   float  as above, prebuffer 60 ms
stall_count_100ms      int    as above, prebuffer 100 ms
stall_s_100ms          float  as above, prebuffer 100 ms
stall_longest_s_100ms  float  as above, prebuffer 100 ms
stall_count_200ms      int    as above, prebuffer 200 ms
stall_s_200ms          float  as above, prebuffer 200 ms
stall_longest_s_200ms  float  as above, prebuffer 200 ms
chunk_at               floats arrivals of the chunks (kept for a sampled share of rows)
chunk_media_s          floats media position of each chunk's first sample (the same share)
stream_id              str    the stream's id in the URL; joins the server's rows
user_onset_at          float  the user's first voiced sample
user_sent_at           float  when the chunk with the user's last voiced sample was handed to the kernel
send_late_max_s        float  worst lateness of a chunk of this turn against the microphone's clock
agent_onset_arrival_at float  arrival of the chunk that holds the agent's first voiced sample
agent_onset_width_s    float  agent_onset_at is exact, or early by at most this (arrival interval)
onset_by               str    who found the onset: ear (VAD, backdated) or gate (level only: the ear was lost)
agent_speech_s         float  agent's onset to its offset
overlap_s              float  agent's speech before the user's offset
utterances             int    stretches of the answer with a pause between them that the server meant
stale_s                float  speech of an earlier turn heard in this one and not counted as its answer
barge_in               bool   the user began while the agent spoke, on purpose
barge_in_after_s       float  how long the agent had spoken when the user began
time_to_silence_s      float  user_onset_at to the end of the agent's audible playout (barge-in)
yielded                bool   the agent stopped speaking for a barge-in
false_barge_ins        int    times the server cleared its audible answer though the user was silent
interruptions          int    interruption messages of the server
agent_stopped_hint_at  float  when the server said that its agent had stopped speaking
host                   str    which of several servers (without credentials)
mode                   str    which part of a run: text, audio, turn_taking, interruption, throughput
iteration              int    which of the run's numbered iterations; null where they are not numbered
decoded                bool   the agent's audio was decoded and heard; if not, only its text and its pages are known
tokens                 int    text pieces that came from user_offset_at to the end of the turn
last_token_at          float  arrival of the last of them (first_token_at: of the first)
token_at               floats arrivals of all of them (kept for the share of rows that keep chunk_at)
ttft_s                 float  first_token_at - user_offset_at
itl_s                  float  (last_token_at - first_token_at) / (tokens - 1); null with fewer than two tokens
tokens_per_s           float  tokens / e2e_s
user_offset_position_s float  seconds of audio sent to the user's last voiced sample
agent_onset_position_s float  seconds of audio received to the agent's first voiced sample (codec look-ahead left out)
stream_transfer_offset_s float agent_onset_position_s - user_offset_position_s, signed: blind to a slow server
lag_s                  float  seconds sent - seconds received, when the agent's first voiced sample came
takeover               bool   the agent spoke for a second or more in answer (Full-Duplex-Bench's TOR, by duration)
pause_takeover         bool   it took over in a pause of the user's; null where the query has no pause
backchannels           int    stretches of its speech begun while the user spoke, shorter than a takeover
user_pauses            int    pauses of 0.3 s or more within the query
"""
)

TURN_STARTS = _columns(
    """
run                    str    run id
worker                 str    which worker process
session                str    as in turns
turn                   int    as in turns
protocol               str    as in turns
dialect                str    as in turns
scenario               str    as in turns
request_id             str    as in turns
text_name              str    as in turns
text_chars             int    as in turns
voice                  str    as in turns
phase                  str    as in turns
level                  int    as in turns
intended_at            float  as in turns
"""
)

SESSIONS = _columns(
    """
run                    str    run id
worker                 str    which worker process
session                str    which user or connection
protocol               str    as in turns
dialect                str    as in turns
scenario               str    as in turns
started_at             float  when the session began
ended_at               float  when it ended
turns                  int    turns it started
connections            int    connections it opened
stream_id              str    as in turns
user                   int    which user of the worker: a user who calls again has another session
ready_at               float  when the call was up (handshake done)
greeting_s             float  speech of the agent before the user's first word
ended_by               str    user, run_ended, or the error_kind that ended it
host                   str    as in turns
mode                   str    as in turns
voice                  str    voice prompt asked for
decoded                bool   as in turns
local_address          str    the client's end of the connection, IP:PORT, as the server's log names it
local_port             int    its port
connected_at           float  WebSocket handshake done (101), before the server's own
setup_s                float  ready_at - started_at: connection, wait for the server's lock, prompts
first_token_at         float  arrival of the session's first text piece
first_audio_at         float  arrival of the message that completed the first decoded PCM
sent_s                 float  audio sent
received_s             float  audio received
unknown_messages       int    messages of kinds that are not known
lag_p50_s              float  seconds sent - seconds received at each arrival of audio, median
lag_p99_s              float  the same
lag_max_s              float  the same, worst
lag_growth_s_per_min   float  slope of a straight line through it; null under five seconds
lag_at                 floats instants of lag_series_s, about one a second
lag_series_s           floats seconds sent - seconds received at them
interarrival_p50_s     float  between arrivals of audio, median
interarrival_p99_s     float  the same
client_stalls          int    underruns of the reference browser client, simulated (1 ms or more)
client_stalled_s       float  their total
client_dropped_s       float  audio it threw away to catch up
"""
)

WORKERS = _columns(
    """
run                    str    run id
worker                 str    which worker process
at                     float  end of the second this row speaks of
interval_s             float  its length
cpu_share              float  process CPU time / wall time: 1.0 is a core
rss_bytes              int    resident memory
loop_lag_p50_s         float  lateness of a 10 ms probe of the event loop, median
loop_lag_max_s         float  the same, worst
gc_count               int    garbage collections
gc_s                   float  time spent in them
send_late_max_s        float  worst lateness of a turn's first byte, or of a microphone's chunk
starts                 int    turns begun
dropped_starts         int    open-loop starts nobody was free to take
in_flight              int    turns under way
users                  int    simulated users
rows                   int    rows recorded so far
listener_errors        int    failures inside our own listeners so far
sends                  int    microphone chunks sent
send_late_p50_s        float  their lateness, median
send_late_p99_s        float  their lateness
calls                  int    calls up at the end of the second
ears_lost              int    hearing subprocesses that died so far
ear_cpu_share          float  CPU time of the hearing subprocess / wall time
ear_behind_s           float  longest that audio waited to be decoded, of what was decoded in this second
"""
)

SERVER = _columns(
    """
run                    str    run id
source                 str    file the row was read from
request_id             str    X-Request-ID
stream_id              str    WebSocket stream
component              str    tts, llm, asr, agent ...
metric                 str    for rows that hold one figure: ttfb, compute_latency, first_sentence, processing ...
value_s                float  for rows that hold one figure: the figure, in seconds
value                  float  the same for a figure that is no duration: tokens_per_s, completion_tokens ...
instance               str    which instance of a service: NvidiaLLMService#0
session                str    the client's session, where the row is joined to one
turn                   int    the client's turn, where the row is joined to one
at                     float  when the row was written (unix seconds by the server's clock)
outcome                str    ok, client_gone, failed, refused, bad_request
status                 int    HTTP status
received_at            float  request read (the server's CLOCK_MONOTONIC)
admitted_at            float  left the queue
first_audio_at         float  first audio handed to the socket
finished_at            float  last byte handed to the socket, or the end
queue_wait_s           float  admitted_at - received_at
ttfb_s                 float  first_audio_at - received_at
audio_s                float  audio produced
characters             int    input characters
voice                  str    voice used
fault                  str    injected faults, by name
"""
)

METRICS = _columns(
    """
run                    str    run id
endpoint               str    URL of the target's Prometheus endpoint, without credentials
metric                 str    name of the sample: vllm:num_requests_waiting, x_seconds_sum ...
labels                 str    k="v",... sorted by name, escaped as Prometheus does; labels over 120 characters left out
kind                   str    gauge, counter, histogram or summary (their _sum and _count), untyped
value                  float  finite: NaN and infinities are left out
at                     float  when the answer had come (unix seconds by the master's clock)
"""
)

TABLES: dict[str, tuple[Column, ...]] = {
    "turns": TURNS,
    "turn_starts": TURN_STARTS,
    "sessions": SESSIONS,
    "workers": WORKERS,
    "server": SERVER,
    "metrics": METRICS,
}


def names(table: str) -> list[str]:
    """Column names of a table, in order."""
    return [column.name for column in TABLES[table]]
