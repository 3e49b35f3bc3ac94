"""Bytes that came and are not heard yet, with their arrivals. Knows nothing of sockets or of what the bytes mean."""

from array import array
from collections.abc import Iterator
from typing import NamedTuple


class Arrival(NamedTuple):
    """When bytes came: not before `empty_at`, and the last of them at `at` (monotonic seconds).

    `at - empty_at` is the width of the interval. Whose clock it is, the link's `clock` says: "kernel" or "user".
    """

    at: float
    empty_at: float


_USUAL_BYTES = 8 * 1024


class Inbox:
    """Three buffers and no objects: a thousand lines have fifty thousand reads a second.

    data: the bytes of all reads, up to `used`. sizes: how many each read brought. instants: of each read two, those of
    its arrival. plain: reads, from the first on, that are not encrypted any more; the link counts them.
    """

    __slots__ = ("data", "instants", "plain", "sizes", "used")

    def __init__(self) -> None:
        self.data = bytearray(_USUAL_BYTES)
        self.empty()

    def __bool__(self) -> bool:
        return self.used > 0

    def empty(self) -> None:
        """All was heard."""
        if len(self.data) > 2 * _USUAL_BYTES:
            self.data = bytearray(_USUAL_BYTES)
        self.used = self.plain = 0
        self.sizes = array("L")
        self.instants = array("d")

    def add(self, data: bytes | memoryview, at: float, empty_at: float) -> None:
        """One read's."""
        begin, end = self.used, self.used + len(data)
        if end > len(self.data):
            self.data += bytes(max(end, 2 * len(self.data)) - len(self.data))
        self.data[begin:end] = data
        self.used = end
        self.sizes.append(len(data))
        self.instants.append(at)
        self.instants.append(empty_at)

    def extend(self, data: bytes | memoryview) -> None:
        """More of the last read."""
        size = self.sizes.pop()
        empty_at, at = self.instants.pop(), self.instants.pop()
        self.add(data, at, empty_at)
        self.sizes[-1] += size

    def take(self, first: int) -> "tuple[bytes, array[int], array[float]]":
        """Bytes, sizes and instants of all reads from number `first` on, which are in it no more."""
        begin = sum(self.sizes[:first])
        taken = bytes(memoryview(self.data)[begin : self.used]), self.sizes[first:], self.instants[2 * first :]
        del self.sizes[first:], self.instants[2 * first :]
        self.used = begin
        return taken

    def reads(self) -> Iterator[tuple[bytes, Arrival]]:
        """One by one."""
        begin = 0
        for k, size in enumerate(self.sizes):
            yield bytes(self.data[begin : begin + size]), Arrival(*self.instants[2 * k : 2 * k + 2])
            begin += size
