"""What batching brings the Chatterbox engine: eight texts at once beside one after the other, tiny, on the CPU.

The same engine in one process, in turns, so that the machine's moods hit both. Throughput is seconds of audio a second;
of the stages, T3 and S3Gen with HiFT, it is seconds of audio for each second that they computed.
"""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.results import Outcome, Target

BATCH, LEAST = 8, 3.0
TEXT = "I understand you are calling about your recent order, and I would be happy to help you with that today."


def run(quick: bool, folder: Path) -> Outcome:
    rounds = 2 if quick else 9
    outcome = Outcome({"batch": BATCH, "rounds": rounds, "text": TEXT, "configuration": "tiny, random weights, CPU"})
    for name, kind in (("chatterbox-turbo", "turbo"), ("chatterbox", "original")):
        found = _measure(kind, rounds)
        outcome.figures[name] = found
        outcome.targets.append(
            Target(f"{name}: {BATCH} at once against one", found["gain"]["engine"], LEAST, "x", at_least=True)
        )
    outcome.notes.append(
        "random weights: timing only. gain: median over the rounds of each round's own ratio. A tiny model on a CPU"
        " has no idle units that a batch could fill: what batching saves there is the cost of calling each operation."
    )
    return outcome


def _measure(kind: Any, rounds: int) -> dict[str, Any]:
    import torch

    from gpu_server.engines.chatterbox.engine import load_engine
    from gpu_server.speech import EngineOptions

    engine = load_engine(kind, EngineOptions(random_weights="tiny", device="cpu", streams=BATCH))
    try:
        for count in (1, BATCH):
            _speak(engine, count)  # not counted
        pairs = [(_speak(engine, 1), _speak(engine, BATCH)) for _ in range(rounds)]
    finally:
        engine.close()
    figures = {
        str(count): {what: statistics.median(pair[place][what] for pair in pairs) for what in pairs[0][place]}
        for place, count in enumerate((1, BATCH))
    }
    gain = {what: statistics.median(many[what] / one[what] for one, many in pairs) for what in pairs[0][0]}
    return {"threads": torch.get_num_threads(), "audio_s_per_s": figures, "gain": gain}


def _speak(engine: Any, count: int) -> dict[str, float]:
    """Throughput with so many speaking, eight answers in all."""
    from gpu_server.speech import SpeechRequest

    def speak() -> None:
        for _ in range(BATCH // count):
            for _ in engine.speak(SpeechRequest(TEXT)):
                pass

    before, began_at, cpu_s = engine.spent(), time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=speak) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s, cpu_s = time.perf_counter() - began_at, time.process_time() - cpu_s
    spent = engine.spent()
    audio_s = spent.audio_s - before.audio_s
    return {
        "engine": audio_s / took_s,
        "engine_by_cpu_time": audio_s / cpu_s,
        "t3": audio_s / (spent.t3_s - before.t3_s),
        "s3gen": audio_s / (spent.s3gen_s - before.s3gen_s),
    }
