"""How many calls the bundled agent holds on one core with the tone engine: it must be no bottleneck for ours."""

import json
from pathlib import Path
from typing import Any

from benchmarks import voice
from benchmarks.calls import CHUNKS_A_SECOND, CYCLE_S, QUERY_S
from benchmarks.load import LiveLoad
from benchmarks.peers.building import built
from benchmarks.peers.starting import bundled_server
from benchmarks.processes import CLIENT_CORE, PYTHON, ROOT, Running
from benchmarks.results import Outcome, Target
from benchmarks.sessions import at_shares

LEAST, SHARE = 200, 0.90
SERVER = ("--engine", "tone", "--agent-vad", "energy", "--no-agent-rtvi", "--calls", "4000", "--streams", "4000")


def run(quick: bool, folder: Path) -> Outcome:
    counts, seconds = ((50,), 8.0) if quick else ((50, 100, 200, 300), 20.0)
    outcome = Outcome({"calls": counts, "window_s": seconds, "server": " ".join(SERVER)})
    program = built("agent_client", folder)
    command = [str(program), "--hear"] if program else [*PYTHON, "benchmarks.peers.asyncio_client"]
    found = [_measure(command, count, folder / str(count), seconds) for count in counts]
    outcome.figures = {"client": "C" if program else "asyncio", "levels": found, **at_shares(found)}
    wanted = next((one for one in found if one["calls"] == (50 if quick else LEAST)), None)
    at = f"{wanted['calls'] if wanted else LEAST} calls"
    outcome.targets = [
        Target(f"{at}: CPU share of the server", wanted and wanted["cpu_share"], SHARE, "core"),
        Target(f"{at}: lost calls", wanted and wanted["lost_calls"], 0, ""),
    ]
    if program:
        least = 0.8 * (wanted["turns_due"] if wanted else 0)
        outcome.targets.append(Target(f"{at}: answers", wanted and wanted["answers"], least, "", at_least=True))
    outcome.notes.append("heard_late_ms: how much later than at its call's best a chunk came, by the client's clock.")
    return outcome


def _measure(command: list[str], count: int, folder: Path, seconds: float) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    clip = folder / "query.s16"
    clip.write_bytes(voice.clip(QUERY_S, 500, 300).samples.tobytes())
    with bundled_server(folder / "server", *SERVER) as (server, _):
        port = server.url.rpartition(":")[2]
        numbers = {"port": port, "calls": count, "cycle-s": CYCLE_S, "warm-s": 4, "seconds": seconds}
        options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        with Running([*command, "--clip", str(clip), *options], cwd=ROOT, core=CLIENT_CORE) as client:
            client.wait_for("all calls are up")
            live = LiveLoad(server.running, server.running, None)
            live.window(4.5)
            window = live.window(seconds - 1.0)
            said: dict[str, Any] = json.loads(client.wait_for("{"))
    known = {key: said.get(key) for key in ("answers", "lost_calls", "sent_late_ms", "heard_late_ms")}
    return {
        "calls": count,
        "cpu_share": window.cpu_share,
        "waited_for_core_share": window.waited_share,
        "turns_due": count * said["seconds"] / CYCLE_S,
        "messages_of_real_time": said["heard"] / (count * CHUNKS_A_SECOND * said["seconds"]),
        **known,
    }
