"""A user's connection to an HTTP server: made once, kept over turns, made anew where the server closed it."""

import json
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from workers import failures
from workers.clients.http_exchange import Exchange, request_bytes
from workers.clients.http_speech import Dialect, Say
from workers.clients.link import Link
from workers.clients.switchboard import Switchboard
from workers.failures import TurnFailed
from workers.samples.measure import Turn

RESEND_WITHIN_S = 0.05


class BadTarget(ValueError):
    """A --host that cannot be spoken to; one line with the fix."""


class Target(NamedTuple):
    """Where turns go: one for all of a worker's users."""

    url: SplitResult
    host: str
    port: int
    tls: ssl.SSLContext | None
    dialect: Dialect
    path: str
    token: str | None


def target(host: str | None, dialect: Dialect, path: str | None, insecure: bool, token: str | None) -> Target:
    """Check --host and prepare TLS once. Raises BadTarget."""
    if not host:
        raise BadTarget("no target: say where the server is, e.g. --host http://localhost:8080")
    try:
        url = urlsplit(host.rstrip("/"))
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise BadTarget(f"--host {host}: {error}") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BadTarget(f"--host {host}: expected http://HOST:PORT or https://HOST:PORT")
    tls = None
    if url.scheme == "https":
        tls = ssl.create_default_context()
        tls.set_alpn_protocols(["http/1.1"])
        if insecure:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return Target(url, url.hostname, port, tls, dialect, url.path + (path or dialect.path), token)


class HttpConnection:
    """One keep-alive connection of one user."""

    def __init__(self, where: Target, board: Switchboard, connect_timeout_s: float) -> None:
        self._target, self._board, self._connect_timeout_s = where, board, connect_timeout_s
        self._link: Link | None = None
        self.opened = 0

    def ask(self, say: Say, turn: Turn, deadline: float, begin: Callable[[], Exchange]) -> None:
        """Send one request and hear its answer to the end, filling in `turn`. Raises TurnFailed.

        `deadline`: monotonic seconds. `begin` makes the exchange that hears; it is called again when a kept connection
        turns out to have been closed by the server before it read the request.
        """
        body = json.dumps(self._target.dialect.body(say), ensure_ascii=False).encode("utf-8")
        request = request_bytes(self._target.url, self._target.path, body, turn.request_id, self._target.token)
        while True:
            link = self._ready_link(turn)
            exchange = begin()
            turn.track, turn.clock, turn.ready_at = exchange.track, link.clock, link.ready_at
            bytes_before, asked_at = link.bytes_in, time.monotonic()
            try:
                link.expect(exchange)
                try:
                    turn.sent_at = link.send(request)
                except OSError as error:
                    exchange.closed(error)
                exchange.wait(deadline)
                return
            except TurnFailed as failure:
                # A kept connection that the server had closed meanwhile shows it at once. One that is closed later was
                # closed by a server that had the request: that is its failure, and asking again would hide it.
                at_once = time.monotonic() - asked_at < RESEND_WITHIN_S and not exchange.answering
                if failure.kind == "closed_before_answer" and not turn.connection_new and at_once:
                    continue
                raise
            finally:
                turn.status, turn.audio_bytes = exchange.status, exchange.audio_bytes
                turn.wire_bytes = link.bytes_in - bytes_before
                if exchange.reusable and not link.shut:
                    link.expect(None)
                else:
                    self.close()

    def _ready_link(self, turn: Turn) -> Link:
        turn.connection_new = self._link is None or self._link.shut
        if self._link is None or self._link.shut:
            where = self._target
            try:
                self._link = Link.connect(
                    where.host, where.port, timeout_s=self._connect_timeout_s, tls=where.tls, board=self._board
                )
            except OSError as error:
                raise failures.of_connecting(error, where.host, where.port) from None
            self.opened += 1
        return self._link

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
