"""Ask the target's own Prometheus endpoints once a second, and keep what they say beside the run's rows.

The master does this, in `server/metrics.msgpack` of the run directory. Knows nothing of what a metric means.
"""

import functools
import logging
import math
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gevent
import gevent.ssl
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from workers import manifest
from workers.exposition import Exposition, Sample
from workers.samples.recorder import LogFull, Recorder

EVERY_S = 1.0
TIMEOUT_S = 0.9  # less than a period: an endpoint that hangs costs its own second and no other
MOST_BYTES = 4_000_000
MOST_SERIES = 400

_PIECE_BYTES = 1 << 16
_PIECE_LINES = 200  # read at a time, a millisecond's work; then others have their turn

_log = logging.getLogger("cicada")


class ScrapeFailed(Exception):
    """An endpoint that gave no metrics; one line that says why."""


@dataclass(slots=True)
class _Endpoint:
    """One endpoint, and what became of the asking. `name` is its URL without credentials."""

    url: str
    name: str
    scrapes: int = 0
    failed: int = 0
    failing: int = 0  # in a row, now
    last_error: str | None = None
    series: set[tuple[str, str]] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)  # metrics of which not every series is kept
    said_left_out: bool = False


class Scraper:
    """A greenlet an endpoint, on an absolute schedule of EVERY_S, from the making of this until `stop`."""

    def __init__(self, log: Path, run: str, urls: Iterable[str], *, insecure: bool = False) -> None:
        """`insecure`: TLS certificates are not verified. Raises LogFull where `log` cannot be made."""
        self._run = run
        begun_at = time.monotonic()
        # As workers' instants are laid on the wall clock: by one anchor, so that a step of that clock moves nothing.
        self._wall_s = time.time() - begun_at
        self._recorder = Recorder(log, {"run": run, "wall_at": self._wall_s + begun_at, "monotonic_at": begun_at})
        self._full = False
        self._insecure = insecure
        self._endpoints = _named(urls)
        self._greenlets = [gevent.spawn(self._watch, endpoint, begun_at) for endpoint in self._endpoints]

    def stop(self) -> dict[str, dict[str, Any]]:
        """End it; what became of each endpoint, by its URL without credentials.

        `scrapes`: those that came to an end, failed ones among them. A scrape under way is dropped.
        """
        gevent.killall(self._greenlets)
        self._recorder.close()
        return {
            endpoint.name: {
                "scrapes": endpoint.scrapes,
                "failed": endpoint.failed,
                "last_error": endpoint.last_error,
                "series": len(endpoint.series),
                "metrics_left_out": sorted(endpoint.left_out),
            }
            for endpoint in self._endpoints
        }

    def _watch(self, endpoint: _Endpoint, begun_at: float) -> None:
        due_at = begun_at
        while not self._full:
            gevent.sleep(max(0.0, due_at - time.monotonic()))
            self._scrape(endpoint)
            due_at = next_due(begun_at, due_at, time.monotonic())

    def _scrape(self, endpoint: _Endpoint) -> None:
        try:
            text = self._fetch(endpoint.url)
            at = time.monotonic() + self._wall_s
            samples = _read(text)
        except ScrapeFailed as error:
            self._failed(endpoint, str(error))
            return
        except Exception as error:  # an answer nobody foresaw is no reason to ask no more
            line = f"{type(error).__name__}: {error}"
            query = urlsplit(endpoint.url).query  # it may hold a token
            self._failed(endpoint, line.replace(query, "[redacted]") if query else line)
            return
        endpoint.scrapes += 1
        if endpoint.failing:
            _log.info("metrics of %s are back after %d failed scrapes", endpoint.name, endpoint.failing)
            endpoint.failing = 0
        self._record(endpoint, samples, at)

    def _failed(self, endpoint: _Endpoint, why: str) -> None:
        why = " ".join(why.split())
        endpoint.scrapes += 1
        endpoint.failed += 1
        endpoint.failing += 1
        endpoint.last_error = why
        if endpoint.failing == 1:
            _log.warning("no metrics of %s: %s (asked again every second)", endpoint.name, why)

    def _fetch(self, url: str) -> str:
        """The exposition at `url`. Raises ScrapeFailed."""
        where = urlsplit(url)
        headers = {"Accept": "text/plain;version=0.0.4", "Connection": "close"}
        if where.username is not None:
            user = f"{unquote(where.username)}:{unquote(where.password or '')}"
            headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        # A connection of its own each time: a kept one that broke would cost the next scrape.
        client = HTTPClient(
            where.hostname or "",
            where.port,
            ssl=where.scheme == "https",
            ssl_context_factory=lambda **_: self._tls,
            insecure=self._insecure,
            connection_timeout=TIMEOUT_S,
            network_timeout=TIMEOUT_S,
        )
        path = (where.path or "/") + (f"?{where.query}" if where.query else "")
        body = bytearray()
        try:
            with gevent.Timeout(TIMEOUT_S), client.get(path, headers=headers) as answer:
                _check(answer)
                while piece := answer.read(_PIECE_BYTES):
                    body += piece
                    if len(body) > MOST_BYTES:
                        raise ScrapeFailed(f"more than {MOST_BYTES / 1e6:g} MB of metrics")
        except (gevent.Timeout, TimeoutError):
            raise ScrapeFailed(f"no whole answer within {TIMEOUT_S:g} s") from None
        except ssl.SSLCertVerificationError as error:
            fix = "for a self-signed one add --insecure"
            raise ScrapeFailed(f"its certificate is not trusted ({error.verify_message}); {fix}") from None
        except OSError as error:
            raise ScrapeFailed(error.strerror or str(error) or type(error).__name__) from None
        except HTTPParseError as error:
            raise ScrapeFailed(f"no whole HTTP answer: {error}") from None
        finally:
            client.close()
        return body.decode("utf-8", "replace")

    @functools.cached_property
    def _tls(self) -> Any:
        context = gevent.ssl.create_default_context()
        if self._insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def _record(self, endpoint: _Endpoint, samples: list[Sample], at: float) -> None:
        written: set[tuple[str, str]] = set()
        for metric, labels, kind, value in samples:
            series = (metric, labels)
            new = series not in endpoint.series
            # Twice in one answer: series that differ in labels too long to be kept.
            if series in written or (new and len(endpoint.series) >= MOST_SERIES):
                endpoint.left_out.add(metric)
                continue
            written.add(series)
            endpoint.series.add(series)
            try:
                self._recorder.append("metrics", [self._run, endpoint.name, metric, labels, kind, value, at])
            except LogFull as error:
                if not self._full:
                    _log.error("metrics are recorded no more: %s", error.strerror)
                self._full = True
                endpoint.last_error = f"cannot be recorded: {error.strerror}"
                return
        if endpoint.left_out and not endpoint.said_left_out:
            endpoint.said_left_out = True
            names = sorted(endpoint.left_out)
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            _log.warning("not all of %s is kept (at most %d series): some of %s", endpoint.name, MOST_SERIES, shown)


def next_due(begun_at: float, due_at: float, now: float) -> float:
    """When to ask next: on the grid of `begun_at`, after `due_at`, and not in the past. Missed ones are left out."""
    periods = max(round((due_at - begun_at) / EVERY_S) + 1, math.ceil((now - begun_at) / EVERY_S))
    return begun_at + periods * EVERY_S


def _named(urls: Iterable[str]) -> list[_Endpoint]:
    """Endpoints under names of their own: two URLs may differ in what is redacted only."""
    named: dict[str, _Endpoint] = {}
    for url in dict.fromkeys(urls):
        shown = name = manifest.without_credentials(url)
        number = 2
        while name in named:
            name, number = f"{shown} #{number}", number + 1
        named[name] = _Endpoint(url, name)
    return list(named.values())


def _check(answer: Any) -> None:
    """Refuse what is no exposition by its status and headers. Raises ScrapeFailed."""
    if 300 <= answer.status_code < 400:
        place = manifest.without_credentials(str(answer.get("location")))
        raise ScrapeFailed(f"HTTP {answer.status_code}: it is at {place}; name that URL")
    if answer.status_code != 200:
        raise ScrapeFailed(f"HTTP {answer.status_code}")
    if "html" in str(answer.get("content-type", "")).lower():
        raise ScrapeFailed("it answers with an HTML page, no metrics: is the path right?")


def _read(text: str) -> list[Sample]:
    """The samples to keep. Raises ScrapeFailed."""
    lines = text.split("\n")
    exposition = Exposition()
    samples: list[Sample] = []
    for first in range(0, len(lines), _PIECE_LINES):
        try:
            samples += exposition.read(lines[first : first + _PIECE_LINES])
        except ValueError as error:
            raise ScrapeFailed(str(error)) from None
        gevent.sleep(0)
    if not exposition.samples:
        raise ScrapeFailed("there is no metric in its answer")
    return samples
