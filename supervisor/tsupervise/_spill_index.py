"""Where in a spill file the older output of a process lies. Pure: no trio, no file.

Output is added behind the newest and dropped from the oldest on. Only one place in every `STRIDE` bytes is
remembered, so that 2 GB of small chunks cost less than a mebibyte here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

STRIDE = 64 << 10
"""About so many bytes of the file lie between two places that are remembered."""


class SpillIndex:
    """See the module. The file is used from `start` to `end`; offsets are never used twice."""

    __slots__ = ("_offsets", "_output_before", "_output_total", "_seqs", "end", "last_seq", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self.last_seq = 0
        """The number of the newest chunk that has ever been added."""
        # Three columns of one table, rising: a chunk's number, its offset, and the output added before it.
        self._seqs = array("Q")
        self._offsets = array("Q")
        self._output_before = array("Q")
        self._output_total = 0

    def __bool__(self) -> bool:
        """Whether there is anything in the file."""
        return self.end > self.start

    @property
    def first_seq(self) -> int:
        """The number of the oldest chunk in the file, which must not be empty."""
        return self._seqs[0]

    @property
    def file_bytes(self) -> int:
        """How much of the file is in use, in bytes."""
        return self.end - self.start

    @property
    def output_bytes(self) -> int:
        """How much output is in the file, in bytes: less than `file_bytes`."""
        return self._output_total - self._output_before[0] if self else 0

    def add(self, seq: int, record_bytes: int, output_bytes: int) -> None:
        """A chunk has been written at `end`."""
        if not self or self.end - self._offsets[-1] >= STRIDE:
            self._seqs.append(seq)
            self._offsets.append(self.end)
            self._output_before.append(self._output_total)
        self.end += record_bytes
        self.last_seq = seq
        self._output_total += output_bytes

    def drop(self, size: int) -> int:
        """Drop the oldest chunks: at least `size` bytes of the file, or all; return how many it was."""
        before = self.start
        kept = bisect_left(self._offsets, before + size)
        for column in (self._seqs, self._offsets, self._output_before):
            del column[:kept]
        self.start = self._offsets[0] if self._offsets else self.end
        return self.start - before

    def offset_for(self, seq: int) -> int:
        """Where to begin reading to meet all that is numbered above `seq`; up to `STRIDE` comes before it."""
        place = bisect_right(self._seqs, seq + 1) - 1
        return self._offsets[max(0, place)]
