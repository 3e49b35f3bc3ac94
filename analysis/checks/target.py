"""What was tested? A mock, an engine without trained weights, a server that was full: figures of something else."""

from collections.abc import Iterator
from typing import Any

from analysis.checks.reason import Reason, share_of
from analysis.counting import Counted
from analysis.runs import Run
from analysis.scraped import read_scraped, series


def mock(run: Run, counted: Counted) -> Reason | None:
    """An engine that makes no speech, or no model at all: figures of the harness and the network."""
    if run.manifest.get("mock"):
        line = "the target is the bundled server that --mock started: it speaks, and no model listened"
        return Reason("warning", "mock_target", line)
    engines = [str(facts.get("engine")) for facts in _facts(run) if facts.get("mock")]
    if not engines:
        return None
    return Reason("warning", "mock_target", f"the target is a mock (engine {', '.join(engines)}): it makes no speech")


def random_weights(run: Run, counted: Counted) -> Reason | None:
    """A model with random weights: as fast as the real one, and what it says means nothing."""
    if not (words := remark(run)):
        return None
    return Reason("warning", "random_weights", f"{words}; lengths of answers, and so RTF, are chance")


def remark(run: Run) -> str:
    """What stands in every output of a run whose target has random weights; of any other nothing."""
    return "random weights: timing only" if any(facts.get("weights") == "random" for facts in _facts(run)) else ""


def full(run: Run, counted: Counted) -> Reason | None:
    """A server at its own limit of streams: its queue is in the latency, and more users find only the queue."""
    most = max((facts["streams_most"] for facts in _facts(run) if facts.get("streams_most")), default=0)
    if not most or counted.measured.empty:
        return None
    begins, ends = counted.measured["intended_wall_at"].min(), counted.measured["ended_wall_at"].max()
    scraped = read_scraped(run.path)
    running, queue = (series(scraped[scraped["at"].between(begins, ends)], role) for role in ("running", "queue_depth"))
    running, queue = (values[values["name"].str.startswith("speech")] for values in (running, queue))
    if running.empty or queue.empty:
        return None
    share = float((running["value"] >= most).mean())
    if share <= 0.05 or not (queue["value"] > 0).any():
        return None
    return Reason(
        "note",
        "target_full",
        f"the target was at its own limit of {most} streams in {share_of(share)} of the time, and up to "
        f"{queue['value'].max():.0f} requests waited: latency holds the wait",
    )


def clocks(run: Run, counted: Counted) -> Reason | None:
    """Workers on several hosts: their instants are laid on one clock no better than their wall clocks agree."""
    boots = {str(log.facts.get("boot_id")) for log in run.sealed.logs.values() if log.facts.get("boot_id")}
    if len(boots) < 2:
        return None
    return Reason(
        "note",
        "several_clocks",
        f"workers ran on {len(boots)} hosts: what is put in order across them (levels, trend, throughput) is as exact "
        "as their wall clocks agree; durations are not concerned",
    )


def _facts(run: Run) -> Iterator[dict[str, Any]]:
    told = run.manifest.get("target_facts")
    yield from (facts for facts in (told.values() if isinstance(told, dict) else ()) if isinstance(facts, dict))
