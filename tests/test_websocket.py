"""WebSocket messages: RFC 6455's own examples, two other libraries' bytes, every cut, every breach."""

import random
from itertools import pairwise
from operator import itemgetter

import pytest
import websocket
from websockets.frames import Frame, Opcode

from workers.clients.websocket import (
    BINARY,
    CLOSE,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    BadFrame,
    Frames,
    Message,
    close_reason,
    frame,
    masked,
)

SIZES = [0, 1, 2, 3, 4, 5, 125, 126, 127, 511, 512, 515, 640, 65535, 65536, 65539]
HELLO = b"Hello"


def served(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A server's frame, made by the `websockets` library."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=False)


def parse(pieces: list[bytes], most_bytes: int = 16 << 20) -> tuple[list[Message], str]:
    """Messages of all pieces, and the error that ended them."""
    frames, found = Frames(most_bytes), []
    for piece in pieces:
        try:
            found += frames.feed(piece)
        except BadFrame as error:
            return [*found, *error.before], str(error)
    return found, ""


def cut(data: bytes, at: list[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in pairwise([0, *sorted(at), len(data)])]


STREAM = b"".join(
    [
        served(BINARY, bytes(range(200))),
        served(BINARY, b""),
        served(TEXT, "Grüße".encode()),
        served(PING, b"p"),
        served(TEXT, "Grü".encode()[:3], fin=False),  # a fragment may end in the middle of a character
        served(PONG, b""),
        served(0, b"", fin=False),
        served(PING, b"between"),
        served(0, "Grü".encode()[3:]),
        served(BINARY, bytes(7), fin=False),
        served(0, bytes(130)),
        served(BINARY, b"x"),
        served(CLOSE, b"\x03\xe8bye"),
    ]
)
MESSAGES = [
    (BINARY, bytes(range(200))),
    (BINARY, b""),
    (TEXT, "Grüße".encode()),
    (PING, b"p"),
    (PONG, b""),
    (PING, b"between"),
    (TEXT, "Grü".encode()),
    (BINARY, bytes(137)),
    (BINARY, b"x"),
    (CLOSE, b"\x03\xe8bye"),
]


def test_what_a_client_sends_is_what_the_rfc_and_another_library_send():
    mask = bytes.fromhex("37fa213d")
    assert frame(TEXT, HELLO, mask) == bytes.fromhex("8185 37fa213d 7f9f4d5158")  # RFC 6455, 5.7
    for size in SIZES:
        payload = random.Random(size).randbytes(size)
        theirs = websocket.ABNF(1, 0, 0, 0, BINARY, 1, payload)
        theirs.get_mask_key = lambda n: mask
        assert frame(BINARY, payload, mask) == theirs.format(), size
        assert masked(masked(payload, mask), mask) == payload
        assert frame(BINARY, payload)[-size - 4 :] == NO_MASK + payload


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        ("8105 48656c6c6f", [(TEXT, HELLO)]),
        ("0103 48656c 8002 6c6f", [(TEXT, HELLO)]),
        ("8905 48656c6c6f", [(PING, HELLO)]),
        ("8a00 8800", [(PONG, b""), (CLOSE, b"")]),
        ("827e0100" + "07" * 256, [(BINARY, b"\7" * 256)]),
        ("827f0000000000010000" + "07" * 65536, [(BINARY, b"\7" * 65536)]),
    ],
)
def test_the_examples_of_the_rfc(received: str, expected: list[Message]):
    assert parse([bytes.fromhex(received)]) == (expected, "")


def test_a_stream_cut_at_every_offset_or_everywhere_says_the_same():
    assert parse([STREAM]) == (MESSAGES, "")
    for at in range(len(STREAM) + 1):
        assert parse(cut(STREAM, [at])) == (MESSAGES, ""), at
    assert parse([bytes([byte]) for byte in STREAM]) == (MESSAGES, "")


def test_lengths_of_every_form():
    frames = Frames()
    for size in SIZES + SIZES:
        assert frames.feed(served(BINARY, bytes(size))) == [(BINARY, bytes(size))]


def test_the_message_that_comes_again_and_again_is_told_from_others_of_its_length():
    usual = served(BINARY, b"a" * 640)
    other = served(BINARY, b"b" * 640)
    frames = Frames()
    for data, payload in ((usual, b"a"), (usual, b"a"), (other, b"b"), (usual, b"a")):
        assert frames.feed(data) == [(BINARY, payload * 640)]
    # The same bytes, but within another message: they are its payload, or a breach.
    looks_usual = served(BINARY, usual)
    assert frames.feed(looks_usual[:4]) == []
    assert frames.feed(usual) == [(BINARY, usual)]
    assert frames.feed(served(BINARY, b"x", fin=False)) == []
    with pytest.raises(BadFrame, match="has not ended"):
        frames.feed(usual)


def test_each_feed_tells_what_it_completed():
    data = served(BINARY, b"a" * 640)
    frames = Frames()
    assert frames.feed(data[:-1]) == []
    assert frames.feed(data[-1:] + data + data[:3]) == [(BINARY, b"a" * 640)] * 2
    assert frames.feed(data[3:]) == [(BINARY, b"a" * 640)]


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ("c2 00", "reserved bits 0b100"),
        ("a1 00", "reserved bits 0b010"),
        ("92 00", "reserved bits 0b001"),
        ("83 00", "unknown opcode 0x3"),
        ("8b 00", "unknown opcode 0xb"),
        ("82 80", "masked"),
        ("82 fe", "masked"),
        ("09 00", "in fragments"),
        ("08 00", "in fragments"),
        ("89 7e", "more than 125"),
        ("88 7f", "more than 125"),
        ("80 00", "a continuation of no message"),
        ("00 00", "a continuation of no message"),
        ("02 00 82", None),
        ("02 00 82 00", "has not ended"),
        ("02 00 01 00", "has not ended"),
        ("81 01 ff", "no UTF-8"),
        ("01 01 c3 80 01 41", "no UTF-8"),
        ("82 7f 80 00 00 00 00 00 00 00", "above the limit"),
        ("82 7f 00 00 00 00 01 00 00 01", "above the limit"),
        ("82 7f 00 00 00 00 01 00 00", None),
        ("82 7f 00 00 00 00 01 00 00 00", None),  # exactly the limit
    ],
)
def test_a_breach_is_told_once_it_can_be_known(bad: str, line: str | None):
    """`None`: not yet. A whole message before it is not lost, and what follows is not read."""
    good = served(BINARY, b"good")
    data = bytes.fromhex(bad)
    messages, error = parse([good + data])
    assert messages == [(BINARY, b"good")]
    assert (error == "") if line is None else (line in error)
    assert parse([bytes([byte]) for byte in good + data]) == (messages, error)
    if line is not None:
        frames = Frames()
        for _ in range(2):
            with pytest.raises(BadFrame, match=line) as again:
                frames.feed(data + good)
            assert "\n" not in str(again.value)
            assert not again.value.before


def test_what_is_too_large_is_refused_before_it_comes_also_in_fragments():
    head = served(BINARY, bytes(1001))[:4]
    assert "above the limit of 1000" in parse([head], 1000)[1]
    parts = [served(BINARY, bytes(600), fin=False), served(0, bytes(401))[:4]]
    assert "1001 bytes or more" in parse(parts, 1000)[1]
    assert parse([*parts[:1], served(0, bytes(400))], 1000) == ([(BINARY, bytes(1000))], "")


def test_nothing_is_heard_after_a_close():
    frames = Frames()
    assert frames.feed(served(CLOSE, b"") + b"\xff\xff") == [(CLOSE, b"")]
    assert frames.feed(served(BINARY, b"late")) == []


def test_a_message_of_five_megabytes_in_small_reads():
    payload = random.Random(5).randbytes(5_000_000)
    data = served(BINARY, payload) + served(BINARY, b"after")
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    assert parse(pieces) == ([(BINARY, payload), (BINARY, b"after")], "")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", (1005, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x03\xf5full", (1013, "full")),
        (b"\x0b\xb8" + "grün".encode(), (3000, "grün")),
        (b"\x13\x87", (4999, "")),
    ],
)
def test_why_a_server_closed(payload: bytes, expected: tuple[int, str]):
    assert close_reason(payload) == expected


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b"\x03", "one byte"),
        (b"\x03\xe8\xff", "no UTF-8"),
        *(
            (code.to_bytes(2, "big"), f"close code {code}")
            for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
        ),
    ],
)
def test_a_close_that_says_nothing_sensible(payload: bytes, line: str):
    with pytest.raises(BadFrame, match=line):
        close_reason(payload)


def test_garbage_gives_messages_or_bad_frame_and_the_same_however_it_is_cut():
    rng = random.Random(6455)
    for _ in range(1500):
        data = bytearray(STREAM[: rng.randrange(1, len(STREAM))])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            data = bytearray(rng.randbytes(60))
        whole = parse([bytes(data)], 1 << 20)
        assert all(opcode in (BINARY, TEXT, CLOSE, PING, PONG) for opcode in map(itemgetter(0), whole[0]))
        at = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(6))]
        assert parse(cut(bytes(data), at), 1 << 20) == whole
