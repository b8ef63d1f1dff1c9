"""The numbered account of one process: its numbers, its window, and the pages that readers get of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise._event_log import CHUNK_BYTES, RETAINED_BYTES, RETAINED_CHUNKS, Chunk, EventLog
from tsupervise._process import Process
from tsupervise._retained_total import RetainedTotal
from tsupervise_protocol.codec import encode_result
from tsupervise_protocol.json_limits import MAX_VALUES, check_limits
from tsupervise_protocol.messages import ReadParams, ReadResult, StartParams, Stream


def closed_log() -> EventLog:
    """Three chunks of four bytes, numbered 1 to 3, then the exit and the close."""
    log = EventLog()
    for data in (b"aaaa", b"bbbb", b"cccc"):
        log.append("stdout", data)
    log.record_exit(0, None)
    log.record_close()
    return log


def seqs(chunks: list[Chunk]) -> list[int]:
    return [chunk.seq for chunk in chunks]


@pytest.mark.case(72)
@pytest.mark.parametrize(
    ("max_bytes", "count", "next_seq"),
    [(None, 3, 6), (0, 1, 2), (1, 1, 2), (4, 1, 2), (5, 1, 2), (8, 2, 3), (12, 3, 4), (100, 3, 4)],
)
def test_a_page_takes_the_first_chunk_and_then_only_what_fits(
    max_bytes: int | None, count: int, next_seq: int
) -> None:
    """A bound never yields an empty page; the number to go on from skips nothing that was left out."""
    log = closed_log()
    page = log.page(0, max_bytes)
    assert (seqs(page.chunks), log.next_seq_of(page)) == (list(range(1, count + 1)), next_seq)
    assert log.has_more(page) == (count < 3)


@pytest.mark.case(73)
@pytest.mark.parametrize("after", [3, 4, 5, 6])
def test_a_reader_who_has_seen_all_output_gets_an_empty_page(after: int) -> None:
    """Behind the last chunk there is nothing to page through but the end of the numbers."""
    log = closed_log()
    page = log.page(after, 4)
    assert (page.chunks, log.next_seq_of(page), log.has_more(page)) == ([], 6, False)
    assert log.closed is not None


def test_every_event_takes_one_number() -> None:
    """Output, exit and close share one counter from 1; output may come behind the exit."""
    log = EventLog()
    assert log.next_seq == log.first_retained_seq == 1
    assert log.append("stdout", b"a") == Chunk(1, "stdout", b"a")
    assert log.record_exit(137, 9) == (2, 137, 9, None, None)
    assert log.append("stderr", b"late") == Chunk(3, "stderr", b"late")
    assert log.record_close() == (4,)
    assert (log.last_seq, log.next_seq, log.output_bytes) == (4, 5, 5)


def test_the_account_refuses_what_cannot_happen() -> None:
    """Empty chunks, two ends, a close without an exit, output behind the close: bugs, and loud ones."""
    log = EventLog()
    with pytest.raises(AssertionError, match="never empty"):
        log.append("stdout", b"")
    with pytest.raises(AssertionError, match="exit comes before"):
        log.record_close()
    log.record_exit(0, None)
    with pytest.raises(AssertionError, match="exits once"):
        log.record_exit(0, None)
    log.record_close()
    with pytest.raises(AssertionError, match="closes once"):
        log.record_close()
    with pytest.raises(AssertionError, match="follows the close"):
        log.append("stdout", b"a")


@pytest.mark.case(74)
def test_the_oldest_chunks_go_whole_when_there_are_too_many_bytes() -> None:
    """What is retained stays within the bound and ends with the newest output."""
    log = EventLog()
    for number in range(3 * 128):
        log.append("stdout", bytes([number % 251]) * 8192)
    chunks = log.page(0, None).chunks
    assert log.retained_bytes == sum(len(chunk.data) for chunk in chunks) == RETAINED_BYTES
    assert seqs(chunks) == list(range(257, 385))
    assert log.first_retained_seq == 257
    assert log.lost_after(0)
    assert log.lost_after(255)
    assert not log.lost_after(256)


def test_a_chunk_over_the_bound_is_kept_until_the_next_one() -> None:
    """A window smaller than one chunk still shows the newest one."""
    log = EventLog(max_bytes=10)
    log.append("stdout", b"x" * 100)
    assert (seqs(log.page(0, None).chunks), log.retained_bytes) == ([1], 100)
    log.append("stdout", b"y")
    assert (seqs(log.page(0, None).chunks), log.retained_bytes) == ([2], 1)


@pytest.mark.case(75)
def test_sixty_thousand_tiny_chunks_fit_one_answer() -> None:
    """The bound on chunks keeps the answer of a read within what a peer takes as one message."""
    log = EventLog()
    for _ in range(60_000):
        log.append("stdout", b"x")
    params = StartParams(process_id="p", argv=["x"], cwd="file:///", env={}, tty=False)
    process = Process(params, "uid", log, RetainedTotal(), RETAINED_BYTES, lambda _: None)
    result = process.read(ReadParams(process_id="p"))
    assert result is not None
    assert len(result.chunks) == RETAINED_CHUNKS == 50_000
    assert (result.first_seq, result.chunks[-1].seq, result.truncated) == (10_001, 60_000, True)
    check_limits(encode_result(1, result))
    values_of_a_chunk = 4  # itself, its number, its stream, its text
    assert count_values(result) == RETAINED_CHUNKS * values_of_a_chunk + 13 <= MAX_VALUES


def count_values(result: ReadResult) -> int:
    """The JSON values of a response with this result."""

    def values(value: Any) -> int:
        match value:
            case dict():
                return 1 + sum(map(values, cast("dict[str, Any]", value).values()))
            case list():
                return 1 + sum(map(values, cast("list[Any]", value)))
            case _:
                return 1

    return values(msgspec.json.decode(encode_result(1, result)))


@dataclass
class Model:
    """The same account, kept naively: every event for ever, and a rule for what is still there."""

    max_bytes: int
    max_chunks: int
    events: list[Chunk | None] = field(default_factory=list[Chunk | None])
    dropped: int = 0
    """Chunks below this index of `chunks` have been dropped."""

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if event is not None]

    @property
    def retained(self) -> list[Chunk]:
        return self.chunks[self.dropped :]

    @property
    def next_seq(self) -> int:
        return len(self.events) + 1

    def append(self, stream: Stream, data: bytes) -> None:
        self.events.append(Chunk(self.next_seq, stream, data))
        while len(self.retained) > 1 and (
            sum(len(chunk.data) for chunk in self.retained) > self.max_bytes
            or len(self.retained) > self.max_chunks
        ):
            self.dropped += 1

    def page(self, after: int, max_bytes: int | None) -> tuple[list[Chunk], int]:
        chunks = [chunk for chunk in self.retained if chunk.seq > after]
        if max_bytes is None or not chunks:
            return chunks, self.next_seq
        count = 1
        while (
            count < len(chunks) and sum(len(chunk.data) for chunk in chunks[: count + 1]) <= max_bytes
        ):  # the first is taken anyhow
            count += 1
        return chunks[:count], chunks[count - 1].seq + 1

    def lost_after(self, after: int) -> bool:
        return any(chunk.seq > after for chunk in self.chunks[: self.dropped])


SIZES = st.integers(1, 6)
STEPS = st.lists(st.one_of(SIZES, st.sampled_from(["exit", "drop"])), max_size=30)


@settings(deadline=None)
@given(
    steps=STEPS,
    closes=st.booleans(),
    max_bytes=st.integers(1, 15),
    max_chunks=st.integers(1, 6),
)
def test_the_log_agrees_with_a_naive_account(
    steps: list[int | str], closes: bool, max_bytes: int, max_chunks: int
) -> None:
    """Whatever is appended and dropped: window, pages of every size from every number, and losses."""
    log, model = EventLog(max_bytes, max_chunks), Model(max_bytes, max_chunks)
    for step in steps:
        if step == "drop":
            oldest = model.retained[:1]
            assert log.drop_oldest() == sum(len(chunk.data) + CHUNK_BYTES for chunk in oldest)
            model.dropped += len(oldest)
        elif step == "exit":
            if log.exit is None:
                model.events.append(None)
                assert log.record_exit(0, None).seq == len(model.events)
        else:
            data = bytes([len(model.events)]) * int(step)
            model.append("stderr", data)
            assert log.append("stderr", data) == model.chunks[-1]
    if closes and log.exit is not None:
        model.events.append(None)
        assert log.record_close().seq == len(model.events)
    assert log.retained_bytes == sum(len(chunk.data) for chunk in model.retained)
    assert log.output_bytes == sum(len(chunk.data) for chunk in model.chunks)
    assert log.next_seq == model.next_seq
    assert log.first_retained_seq == (model.retained[0].seq if model.retained else model.next_seq)
    for after in range(model.next_seq + 2):
        assert log.lost_after(after) == model.lost_after(after), after
        for bound in (None, *range(20)):
            page = log.page(after, bound)
            assert (page.chunks, log.next_seq_of(page)) == model.page(after, bound), (after, bound)


@settings(deadline=None)
@given(sizes=st.lists(SIZES, max_size=20), max_bytes=st.integers(0, 20))
def test_paging_reads_everything_once(sizes: list[int], max_bytes: int) -> None:
    """A reader who goes on from one below the returned number sees each retained chunk exactly once."""
    log = EventLog()
    for number, size in enumerate(sizes):
        log.append("stdout", bytes([number]) * size)
    log.record_exit(0, None)
    log.record_close()
    seen: list[Chunk] = []
    after = 0
    while True:
        page = log.page(after, max_bytes)
        if not page.chunks:
            break
        seen += page.chunks
        after = log.next_seq_of(page) - 1
        assert log.has_more(page) == (len(seen) < len(sizes))
    assert seen == log.page(0, None).chunks
