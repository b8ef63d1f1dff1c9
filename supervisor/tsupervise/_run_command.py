"""One command from its start to its end: input fed, output collected, the outcome as a value or an error."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ._background import open_background
from ._remote_process import RemoteProcess
from .completed import Completed
from .errors import (
    CommandCrashed,
    CommandFailed,
    OutcomeUnknown,
    OutputLost,
    StdinClosed,
    TooMuchOutput,
    TsuperviseError,
)
from .events import Exited, Lost, Output

MAX_OUTPUT_BYTES = 64 << 20
"""The output of one command that is collected unless another bound is given, both streams together."""


async def complete(
    process: RemoteProcess, argv: Sequence[str], input: bytes | None, max_output_bytes: int
) -> Completed:
    """Feed a process and collect its output until it is closed.

    Raises:
        TooMuchOutput: more than `max_output_bytes`; the process is as it was.
        OutcomeUnknown: it has ended, and the server does not know how.
    """
    failure: TsuperviseError | None = None
    collecting = trio.CancelScope()

    async def feed(data: bytes) -> None:
        nonlocal failure
        try:
            await process.stdin.send_all(data)
            await process.stdin.aclose()
        except StdinClosed:
            pass  # it need not read all of it
        except TsuperviseError as error:
            # Without the rest of its input it might never end.
            failure = error
            collecting.cancel()

    outputs: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
    size = 0
    exited: Exited | None = None
    async with open_background(outlast_cancel=False) as tasks:
        if input is not None:
            tasks.start_soon(feed, input)
        with collecting:
            async for event in process.events():
                match event:
                    case Output(stream=stream, data=data):
                        size += len(data)
                        if size > max_output_bytes:
                            raise TooMuchOutput(argv, max_output_bytes)
                        outputs[stream].append(data)
                    case Lost(first_seq=first, seq=last):
                        raise OutputLost(process.process_id, first, last)
                    case Exited():
                        exited = event
                    case _:
                        pass
        if failure is not None:
            raise failure
    exit_code = await process.wait()
    if exit_code < 0:
        raise OutcomeUnknown(f"{argv[0]!r} has ended, but the server does not know how")
    return Completed(
        tuple(argv),
        exit_code,
        None if exited is None else exited.term_signal,
        b"".join(outputs["stdout"] or outputs["pty"]),
        b"".join(outputs["stderr"]),
    )


def raise_if_failed(completed: Completed) -> None:
    """Raise CommandFailed or CommandCrashed for a command that did not end with 0."""
    if completed.term_signal is not None:
        raise CommandCrashed(completed)
    if completed.exit_code != 0:
        raise CommandFailed(completed)
