"""python -m workers: what can be done with runs besides Locust itself."""

import argparse
import os
import sys
from pathlib import Path

from workers.clips_command import add_arguments as add_clips_arguments


def locust_options() -> str:
    """Help of the options that `locust --help` cannot show: it answers before it reads a locustfile."""
    from workers.settings import add_arguments

    added = argparse.ArgumentParser(
        prog="locust", usage="locust [LOCUST'S OWN OPTIONS, see locust --help] [OPTIONS BELOW]", add_help=False
    )
    add_arguments(added)
    return added.format_help().rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workers",
        description="Load is generated with `locust` itself (see docs/running.md). This does what is around it.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    demo = verbs.add_parser("demo", help="server, master, two workers and a report, on this machine, in half a minute")
    demo.add_argument("--run-time", default="20s", help="how long users speak (default: 20s)")
    verbs.add_parser(
        "options", help="what our locustfiles add to Locust's options, which are the keys of a scenario too"
    )
    seal = verbs.add_parser("seal", help="make a run's tables (Parquet) from its logs")
    seal.add_argument("run", type=Path, help="run directory")
    recover = verbs.add_parser(
        "recover",
        help="copy what a run misses from workers' spools",
        description="Copy what RUN misses from the spools of its workers, and make its tables anew.",
        epilog="example: python -m workers recover spool/20261120-101500-speech/*.msgpack runs/20261120-101500-speech",
    )
    recover.add_argument(
        "spools", type=Path, nargs="+", metavar="SPOOL", help="a worker's .msgpack, or a folder of them"
    )
    recover.add_argument("run", type=Path, metavar="RUN", help="run directory")
    add_clips_arguments(
        verbs.add_parser(
            "clips",
            help="say what is wrong with the audio one wants to speak, and mend it",
            description="Say what is wrong with the audio one wants to speak, and mend it.",
        )
    )
    options = parser.parse_args()
    try:
        match options.verb:
            case "demo":
                from workers.demo import demo as run_demo

                return run_demo(options.run_time)
            case "options":
                print(locust_options(), flush=True)
            case "seal":
                from workers.samples.shards import seal as seal_run

                seal_run(options.run)
            case "recover":
                from workers.recover import recover as recover_run

                print(recover_run(options.spools, options.run))
            case "clips":
                from workers.clips_command import clips_command

                return clips_command(options)
    except BrokenPipeError:  # its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
    except (OSError, ValueError) as error:
        print(f"python -m workers {options.verb}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
