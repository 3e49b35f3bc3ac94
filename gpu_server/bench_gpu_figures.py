"""What was asked of the Chatterbox engine on an H200, beside what its benchmarks say. Runs and measures nothing.

A figure is `reached` or `missed` only where it was measured as it was asked for: the full model on a GPU. Anything else
found is shown and not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_server.baseline_result import RANDOM_WEIGHTS, Document, times

ENGINES = ("chatterbox-turbo", "chatterbox")
REHEARSED = "not as asked for"
T3_FLOOR_MS = 0.16  # a step of Turbo, one stream, bf16: its weights read once at an H200's 4.3 TB/s


@dataclass(frozen=True, slots=True)
class Asked:
    """One figure: at most `limit`. streams: at a time; with `keep_up`, all of them without a stall as well."""

    engine: str
    name: str
    key: str
    limit: float
    unit: str
    streams: int
    keep_up: bool = False


ASKED = (
    Asked("chatterbox-turbo", "first chunk, p50", "ttfc_p50_ms", 40, "ms", 1),
    Asked("chatterbox-turbo", "real-time factor", "rtf", 0.04, "", 1),
    Asked("chatterbox-turbo", "first chunk, p95", "ttfc_p95_ms", 150, "ms", 64, keep_up=True),
    Asked("chatterbox-turbo", "first chunk, p95 (stretch)", "ttfc_p95_ms", 150, "ms", 128, keep_up=True),
    Asked("chatterbox-turbo", "peak of GPU memory", "vram_peak_gb", 12, "GB", 8),
    Asked("chatterbox", "first chunk, p50", "ttfc_p50_ms", 100, "ms", 1),
    Asked("chatterbox", "real-time factor", "rtf", 0.10, "", 1),
    Asked("chatterbox", "first chunk, p95", "ttfc_p95_ms", 300, "ms", 24, keep_up=True),
    Asked("chatterbox", "peak of GPU memory", "vram_peak_gb", 12, "GB", 8),
)


@dataclass(frozen=True, slots=True)
class Found:
    """The parts' documents, by engine; an engine that is not there was not measured."""

    beside: dict[str, Document]
    engine: dict[str, Document]
    memory: dict[str, Document]

    @classmethod
    def of(cls, parts: Sequence[tuple[str, str, Document | None]]) -> "Found":
        """From (engine, part, document)."""
        found = cls({}, {}, {})
        for engine, part, document in parts:
            if document is not None:
                getattr(found, part)[engine] = document
        return found


def figures(found: Found) -> list[Document]:
    """All that was asked for, in order, each with what was found and a verdict."""
    return [_figure(asked, found) for asked in ASKED]


def _figure(asked: Asked, found: Found) -> Document:
    document = (found.memory if asked.key == "vram_peak_gb" else found.engine).get(asked.engine)
    value, kept_up = _value(asked, document) if document is not None else (None, None)
    told: Document = {
        "engine": asked.engine,
        "figure": asked.name,
        "streams": asked.streams,
        "limit": asked.limit,
        "unit": asked.unit,
        "found": value,
    }
    if asked.keep_up:
        told["streams_in_real_time"] = kept_up
    if document is None or value is None:
        return told | {"verdict": "not measured"}
    if not _as_asked(document):
        return told | {"verdict": REHEARSED}
    # Memory is asked to stay below its limit, the others at it or below.
    within = value < asked.limit if asked.key == "vram_peak_gb" else value <= asked.limit
    return told | {"verdict": "reached" if within and (not asked.keep_up or kept_up == asked.streams) else "missed"}


def _value(asked: Asked, document: Document) -> tuple[float | None, int | None]:
    """The figure, and how many streams kept up."""
    if asked.streams == 1:
        summary = document["summary"]
        return (summary["overall_rtf"] if asked.key == "rtf" else summary["streaming"][asked.key]), None
    level = _level(document, asked.streams)
    if level is None or level["failed"]:
        return None, None
    return level[asked.key], level["streams_in_real_time"]


def _level(document: Document, streams: int) -> Document | None:
    levels = document.get("concurrency", {}).get("levels", [])
    return next((level for level in levels if level["streams"] == streams), None)


def _as_asked(document: Document) -> bool:
    configuration = document["configuration"]
    return bool(configuration["device"] == "cuda" and configuration["size"] == "full")


def ratios(found: Found) -> list[Document]:
    """Upstream's generate / the engine, one stream, of the texts that both said: 2.0 is twice as fast."""
    told: list[Document] = []
    for engine in ENGINES:
        before, after = found.beside.get(engine), found.engine.get(engine)
        texts = [name for name in before["results"] if name in after["results"]] if before and after else []
        if before is None or after is None or not texts:
            told.append({"engine": engine, "texts": [], "mean_latency": None, "first_chunk": None, "rtf": None})
            continue
        was, now = ([document["results"][name] for name in texts] for document in (before, after))
        told.append(
            {
                "engine": engine,
                "texts": texts,
                "mean_latency": _ratio(was, now, ("latency", "mean_ms")),
                "first_chunk": _ratio(was, now, ("streaming", "ttfc_mean_ms")),
                "rtf": _by_audio(was, now),
            }
        )
    return told


def _ratio(was: Sequence[Document], now: Sequence[Document], keys: tuple[str, str]) -> float | None:
    above, below = (sum(text[keys[0]][keys[1]] for text in texts) for texts in (was, now))
    return round(above / below, 2) if below else None


def _by_audio(was: Sequence[Document], now: Sequence[Document]) -> float | None:
    above, below = (
        sum(text["latency"]["mean_ms"] for text in texts) / sum(text["audio_duration_ms"] for text in texts)
        for texts in (was, now)
    )
    return round(above / below, 2) if below else None


def floor(found: Found) -> Document:
    """T3's milliseconds a step with one stream, its prefill included, by the least that an H200's memory allows."""
    document = found.engine.get("chatterbox-turbo")
    stages = [text["stages"] for text in document["results"].values()] if document is not None else []
    tokens = sum(stage["t3_tokens"] for stage in stages)
    step_ms = round(sum(stage["t3_s"] for stage in stages) / tokens * 1000, 3) if tokens else None
    judged = document is not None and _as_asked(document) and step_ms is not None
    return {
        "engine": "chatterbox-turbo",
        "t3_step_ms": step_ms,
        "floor_ms": T3_FLOOR_MS,
        "times_the_floor": round(step_ms / T3_FLOOR_MS, 1) if judged and step_ms is not None else None,
    }


def remarks(found: Found) -> list[str]:
    """What a reader must know of all of them."""
    documents = [*found.beside.values(), *found.engine.values(), *found.memory.values()]
    told = [RANDOM_WEIGHTS] if any(one["configuration"]["weights"] == "random" for one in documents) else []
    if any(not _as_asked(document) for document in documents):
        told.append("a rehearsal: not the full model on a GPU, so that no figure is one asked for")
    gpus = sorted({str(document["configuration"]["gpu"]) for document in documents if _as_asked(document)})
    told += [f"asked for of an H200; measured on {gpu}" for gpu in gpus if "H200" not in gpu]
    return told


def figure_line(told: Document) -> str:
    """One figure as people read it."""
    at = f"{told['streams']} stream{'' if told['streams'] == 1 else 's'}"
    limit = f"{'<' if told['unit'] == 'GB' else '<='} {told['limit']:g} {told['unit']}".strip()
    found = "-" if told["found"] is None else f"{told['found']:g} {told['unit']}".strip()
    kept = told.get("streams_in_real_time")
    kept_up = "" if kept is None else f", {kept} of {told['streams']} without a stall"
    name = f"{told['engine']:<16} | {told['figure']}, {at}"
    return f"{name:<62} | {limit:<10} | {found}{kept_up} | {told['verdict']}"


def ratio_lines(told: Sequence[Document]) -> list[str]:
    """Each engine's ratios in one line."""
    lines = []
    for one in told:
        if one["texts"]:
            parts = [f"{title} {times(one[key])}" for key, title in _RATIOS.items()]
            lines.append(f"{one['engine']:<16} | beside upstream's generate(): {', '.join(parts)}")
        else:
            lines.append(f"{one['engine']:<16} | beside upstream's generate(): not measured")
    return lines


_RATIOS = {"mean_latency": "whole answer", "first_chunk": "first chunk", "rtf": "RTF"}


def floor_line(told: Document) -> str:
    """The floor in one line."""
    if told["t3_step_ms"] is None:
        return f"{told['engine']:<16} | T3 a step, 1 stream: not measured"
    times = "" if told["times_the_floor"] is None else f", {told['times_the_floor']:g} times it"
    return (
        f"{told['engine']:<16} | T3 a step, 1 stream: {told['t3_step_ms']:g} ms (an H200's floor in bf16:"
        f" {told['floor_ms']:g} ms{times})"
    )
