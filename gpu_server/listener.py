"""Listen, serve and stop. Knows nothing of routes or speech."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 2048


class CannotListen(Exception):
    """The address cannot be had; the message says which and why."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a busy port is known before anything is loaded. Port 0 takes a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error}") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    listening.listen(_BACKLOG)  # From here on a client's connection waits rather than fails.
    return listening


class _Server(uvicorn.Server):
    """uvicorn, with its signal handling left to `serve`: its own waits for streams that may never end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
        for task in self.server_state.tasks:
            task.cancel()


async def serve(
    app: ASGIApp, websocket: type[asyncio.Protocol], listening: socket.socket, start: Coroutine[Any, Any, None]
) -> None:
    """Serve until SIGINT or SIGTERM. `start` runs beside it from the first moment; if it raises, serving ends.

    Requests to upgrade to WebSocket go to `websocket`, all others to `app`.
    """
    server = _Server(
        uvicorn.Config(
            app,
            backlog=_BACKLOG,
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=75,
            ws=websocket,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    starting = asyncio.create_task(start)
    await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
    try:
        if starting.done():
            starting.result()
    except BaseException:
        server.stop()
        raise
    finally:
        starting.cancel()
        await serving


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:  # Windows has none
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
