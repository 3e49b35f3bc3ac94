"""Keep large tensors off the process's heap. Knows nothing of who makes them.

Tensors on the CPU come from glibc, which after a while takes ever larger ones from its heap, where those of every other
size leave holes: 400 MB of 1,150 after some minutes at full load. Below a fixed size they still do, and there it is
fast; larger ones get pages of their own and give them back.
"""

import ctypes

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_BYTES = 4 << 20


def give_large_blocks_back() -> None:
    """For the whole process, from now on. Nothing happens where the C library is another."""
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES)
    except (OSError, AttributeError):
        return
