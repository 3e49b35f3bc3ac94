"""Start the bundled server from the command line. Knows nothing of how it works inside."""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from gpu_server import agent_settings, chatterbox_settings, duplex_settings
from gpu_server.agent_settings import checked
from gpu_server.faults import DUPLEX_ONLY, HTTP_ONLY, KINDS, NOT_HTTP, example, parse_fault
from gpu_server.pace import parse_pace
from gpu_server.speech import ENGINES, Engine, EngineOptions, EngineUnavailable

TOKEN_NAME = "CICADA_SERVER_TOKEN"

EPILOG = """examples:
  python -m gpu_server                                     espeak on http://127.0.0.1:8080
  python -m gpu_server --engine tone --pace 120,0.4        like an engine with 120 ms to first audio, RTF 0.4
  python -m gpu_server --streams 4 --queue 8               to see admission at work: 503 from the 13th on
  python -m gpu_server --trace trace.jsonl                 the server's own account of each request
  python -m gpu_server --fault delay:p=0.1,s=0.5           every tenth answer half a second late

try it:
  curl -s localhost:8080/v1/synthesize -H 'content-type: application/json' -d '{"text": "Hello."}' >hello.wav
  curl -s localhost:8080/v1/audio/speech -d '{"input": "Hello.", "voice": "alto"}' >hello.mp3

CHATTERBOX

AGENT

DUPLEX

faults:
  FAULTS

With CICADA_SERVER_TOKEN set (environment or .env), /v1, /ws and /api/chat want `Authorization: Bearer TOKEN`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _serve(options)
    except KeyboardInterrupt:
        return 0


def _serve(options: argparse.Namespace) -> int:
    try:
        from websockets.datastructures import Headers

        from gpu_server.app import build_app
        from gpu_server.calls import Calls, choose_replier
        from gpu_server.duplex import Sessions, is_duplex
        from gpu_server.duplex_model import ModelUnavailable
        from gpu_server.listener import CannotListen, bind, run, serve
        from gpu_server.recognizer import CannotRecognize
        from gpu_server.service import Service, Settings
        from gpu_server.trace import TraceLog
        from gpu_server.websocket import Listener, connection_class
    except ImportError as error:
        return _fail(f"a part of the server is not installed ({error}); run: pip install -e '.[server]'")
    settings = Settings(
        streams=options.streams,
        queue=options.queue,
        max_characters=options.max_chars,
        pace=options.pace,
        chunk_ms=options.chunk_ms,
        faults=tuple(options.fault),
        fault_seed=options.fault_seed,
        token=_token(),
    )
    try:
        chatterbox = chatterbox_settings.read_options(options)
    except ValueError as error:
        return _fail(str(error))
    agent = agent_settings.read_options(options)
    duplex = duplex_settings.read_options(options)
    try:
        listening = bind(options.host, options.port)
        engine = ENGINES[options.engine](
            EngineOptions(options.tone_seconds, streams=options.streams, queue=options.queue, **chatterbox)
        )
        trace = None if options.trace is None else TraceLog(options.trace, engine.name)
        service = Service(engine, settings, trace)
        calls = Calls(service, agent)
        sessions = Sessions(service, duplex, choose_replier(agent))
    except (CannotListen, CannotRecognize, EngineUnavailable, ModelUnavailable) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}")

    async def start() -> None:
        service.telemetry.start()
        await calls.warm_up()
        await sessions.warm_up()
        await service.warm_up()
        print(f"gpu_server: ready on {_url(listening)} {_description(engine)}", flush=True)

    def door(path: str, headers: Headers) -> Listener:
        return (sessions if is_duplex(path) else calls).door(path, headers)

    async def serve_all() -> None:
        try:
            await serve(build_app(service), connection_class(door, agent.ping_s), listening, start())
        finally:
            await calls.close()

    try:
        run(serve_all())
    except (EngineUnavailable, CannotRecognize, ModelUnavailable) as error:
        return _fail(str(error))
    finally:
        calls.close_log()
        sessions.close()
        service.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    faults = "\n  ".join(_fault_line(kind) for kind in KINDS)
    parser = _Parser(
        prog="python -m gpu_server",
        description="Speech over HTTP, a voice agent and full duplex over WebSocket: the system under test of Cicada.",
        epilog=EPILOG.replace("FAULTS", faults)
        .replace("AGENT", agent_settings.EXAMPLES)
        .replace("CHATTERBOX", chatterbox_settings.EXAMPLES)
        .replace("DUPLEX", duplex_settings.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=ENGINES, default="espeak", help="what speaks (default: espeak)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_whole(0, 65535), default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument("--streams", type=_whole(1), default=64, metavar="N", help="spoken at a time (default: 64)")
    parser.add_argument("--queue", type=_whole(0), default=256, metavar="N", help="waiting beyond that (default: 256)")
    parser.add_argument("--max-chars", type=_whole(1), default=4096, metavar="N", help="a text (default: 4096)")
    parser.add_argument(
        "--pace", type=checked(parse_pace), metavar="TTFC_MS,RTF", help="release audio as slowly as such an engine"
    )
    parser.add_argument("--chunk-ms", type=_whole(1), metavar="N", help="audio a chunk (default: as the engine does)")
    parser.add_argument("--tone-seconds", type=_seconds, metavar="S", help="length of every tone (tone engine)")
    parser.add_argument("--trace", type=Path, metavar="PATH", help="append a JSON line for each request and turn")
    parser.add_argument(
        "--fault", type=checked(parse_fault), action="append", default=[], metavar="SPEC", help="repeatable; see below"
    )
    parser.add_argument("--fault-seed", type=int, default=0, metavar="N", help="which requests are hit (default: 0)")
    chatterbox_settings.add_options(parser)
    agent_settings.add_options(parser, _whole)
    duplex_settings.add_options(parser, _whole)
    return parser


def _fault_line(kind: str) -> str:
    limits = {"not over HTTP": NOT_HTTP, "HTTP only": HTTP_ONLY, "full duplex only": DUPLEX_ONLY}
    limit = next((f"({words})" for words, kinds in limits.items() if kind in kinds), "")
    return f"{example(kind):<28}{limit}".rstrip()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of twelve options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_server: {message}; see python -m gpu_server --help\n")


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            bounds = f"of {low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to 3600")
    return seconds


def _token() -> str | None:
    from dotenv import dotenv_values

    return os.environ.get(TOKEN_NAME) or dotenv_values(".env").get(TOKEN_NAME) or None


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _description(engine: Engine) -> str:
    mark = " random weights: timing only" if getattr(engine, "weights", None) == "random" else ""
    return f"engine={engine.name} voices={','.join(engine.voices)}{mark}"


def _fail(message: str) -> int:
    print(f"gpu_server: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
