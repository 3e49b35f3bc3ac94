"""Which client a log's figures belong to: by stream id, or by instance and order of connection. Computes no figure.

Stock pipecat writes no stream id. Its services are numbered from 0 in each process and class, one a session, so the
k-th instance serves the k-th client of that process.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from analysis.log_lines import Connected, Figure, LogReader


@dataclass(slots=True)
class Client:
    """A client's connection as the log tells of it. stream_id: None where the log does not name it.

    implied: no line tells of the connection; there only is an instance that somebody must have used.
    """

    process: str
    number: int  # its place among the clients of its process
    stream_id: str | None
    at: float | None
    offset: int
    implied: bool = False

    @property
    def label(self) -> str:
        """What a table calls this client."""
        return self.stream_id or f"#{self.number}"


@dataclass(slots=True)
class Survey:
    """What one pass over a log found: who came, which instances there are, and whose each of them is.

    unknown: instances that cannot be given to a client, with the reason. streams: ids that lines name.
    """

    path: Path
    size_bytes: int = 0
    clients: list[Client] = field(default_factory=list)
    owner: dict[tuple[str, str], Client] = field(default_factory=dict)
    unknown: dict[tuple[str, str], str] = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)

    @property
    def last_start(self) -> int:
        """Where in the file the last client came; 0 if none is told of."""
        return max((client.offset for client in self.clients if not client.implied), default=0)


def survey(path: Path) -> Survey:
    """Read a log once and find out who is who in it. Raises OSError."""
    found = Survey(path)
    reader = LogReader(path)
    awaiting: dict[str, list[Client]] = defaultdict(list)  # said by the web server, not yet by the application
    numbers: dict[str, int] = defaultdict(int)
    seen: dict[tuple[str, str], float | None] = {}  # instance -> when first
    labelled: dict[tuple[str, str], str] = {}
    for event in reader.clients():
        if isinstance(event, Connected):
            waiting = awaiting[event.process]
            known = _repeated(waiting, event) if event.by_app else None
            if known is None:
                client = Client(event.process, numbers[event.process], event.stream_id, event.at, event.offset)
                numbers[event.process] += 1
                found.clients.append(client)
                if not event.by_app:
                    waiting.append(client)
                    del waiting[:-1000]  # a log of the web server's lines alone
            else:
                known.stream_id = known.stream_id or event.stream_id
                known.at = event.at or known.at
            continue
        key = (event.process, event.instance)
        seen.setdefault(key, event.at)
        if event.stream_id:
            labelled[key] = event.stream_id
            found.streams.add(event.stream_id)
    found.size_bytes = reader.size_bytes
    _own(found, seen, labelled)
    return found


def _repeated(waiting: list[Client], event: Connected) -> Client | None:
    """The connection, told of by the web server, that the application now repeats; no longer waiting."""
    for place, client in enumerate(waiting):
        if client.stream_id == event.stream_id:
            return waiting.pop(place)
    for place, client in enumerate(waiting):
        if client.stream_id is None:
            return waiting.pop(place)
    return None


def _own(found: Survey, seen: dict[tuple[str, str], float | None], labelled: dict[tuple[str, str], str]) -> None:
    """Give each instance that has no stream id to a client of its process, or say why not."""
    of_stream = {client.stream_id: client for client in found.clients if client.stream_id}
    classes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (process, instance), at in seen.items():
        name, _, its_number = instance.rpartition("#")
        if stream := labelled.get((process, instance)):
            client = of_stream.get(stream)
            if client is None:
                client = of_stream[stream] = Client(process, len(of_stream), stream, at, 0, implied=True)
                found.clients.append(client)
            found.owner[process, instance] = client
        else:
            classes[process, name].append(int(its_number))
    for process in sorted({process for process, _ in classes}):
        here = {name: sorted(numbers) for (its, name), numbers in classes.items() if its == process}
        clients = [client for client in found.clients if client.process == process and not client.implied]
        if not clients:
            clients = _implied(process, here, seen)
            found.clients += clients
        for name, numbers in here.items():
            for rank, number in enumerate(numbers):
                key = (process, f"{name}#{number}")
                place = _place(rank, number, numbers, len(clients))
                if place is None:
                    found.unknown[key] = (
                        f"{len(numbers)} instances of {name} and {len(clients)} connections: whose is whose is unknown"
                    )
                else:
                    found.owner[key] = clients[place]


def _place(rank: int, number: int, numbers: list[int], clients: int) -> int | None:
    """Which client of the process an instance serves; None where the counts do not tell."""
    each, left = divmod(len(numbers), clients)
    if each and not left:
        return rank // each
    # Fewer than clients: some were never called. Numbers count from 0 where the log begins with the process.
    return number if len(numbers) < clients and number < clients else None


def _implied(process: str, here: dict[str, list[int]], seen: dict[tuple[str, str], float | None]) -> list[Client]:
    """No line tells of a connection: as many clients as the class with the most instances has."""
    name, numbers = max(here.items(), key=lambda item: len(item[1]))
    return [Client(process, number, None, seen[process, f"{name}#{number}"], 0, implied=True) for number in numbers]


def client_of(found: Survey, figure: Figure) -> Client | str | None:
    """Whose a figure is: its stream id if the line names one, else the client its instance serves, else None."""
    if figure.stream_id:
        return figure.stream_id
    return found.owner.get((figure.process, figure.instance))
