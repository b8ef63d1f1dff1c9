"""A model that says what a script says, for driving the real client: HTTP on loopback, by trio and h11.

It owns the one endpoint that the client needs, `POST /v1/responses` answered by an event stream, and
knows nothing of processes. A script is a list of turns; each turn is the tool calls to ask for, or a
function that makes them from what the tools of the turn before answered (so it can name a session that
did not exist when the script was written, and act between two turns). After the last turn the model
says a closing sentence, which ends the client's run. One connection carries one request: the client
does not mind, and there is no state between requests but the script itself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import h11
import trio


@dataclass(frozen=True)
class Call:
    """One tool call; the calls of one turn run at the same time."""

    tool: str
    arguments: Mapping[str, Any]
    namespace: str | None = None
    """Of the tools that an MCP server has."""


Turn = Sequence[Call] | Callable[[Sequence[str]], Sequence[Call]]
"""Calls, or a function from the previous turn's tool outputs (in the order of its calls) to calls."""


@dataclass
class ScriptedModel:
    """The state of one script. `outputs` has one list for each turn whose tools have answered."""

    port: int
    turns: Iterator[Turn]
    outputs: list[list[str]] = field(default_factory=list[list[str]])
    asked: list[str] = field(default_factory=list[str])
    """The call ids of the turn that is under way."""
    told: str = ""
    """All that the client has said so far, as it says it again with each request: as JSON."""
    finished: bool = False
    ids: Iterator[int] = field(default_factory=count)

    def respond(self, conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The output items of the next turn, given the `input` of the client's request."""
        self.told = json.dumps(conversation, ensure_ascii=False)
        if self.asked:
            answered = {
                item["call_id"]: text_of(item["output"])
                for item in conversation
                if item.get("type") == "function_call_output"
            }
            self.outputs.append([answered[call_id] for call_id in self.asked])
            self.asked = []
        turn = next(self.turns, None)
        if turn is None:
            self.finished = True
            content = [{"type": "output_text", "text": "the script has ended"}]
            return [{"type": "message", "id": self.new_id(), "role": "assistant", "content": content}]
        return [self.function_call(call) for call in (turn(self.outputs[-1]) if callable(turn) else turn)]

    def function_call(self, call: Call) -> dict[str, Any]:
        call_id = self.new_id()
        self.asked.append(call_id)
        item = {"type": "function_call", "call_id": call_id, "name": call.tool}
        if call.namespace is not None:
            item["namespace"] = call.namespace
        return {**item, "arguments": json.dumps(call.arguments)}

    def new_id(self) -> str:
        return f"id-{next(self.ids)}"


def text_of(output: str | Sequence[Mapping[str, Any]]) -> str:
    """What a tool answered: plain text, or the joined text of a list of content items."""
    return output if isinstance(output, str) else "".join(item.get("text", "") for item in output)


def event_stream(response_id: str, items: Sequence[Mapping[str, Any]]) -> bytes:
    """The events of one whole response; the client needs the token counts, and only their presence."""
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": {"id": response_id}}]
    for index, item in enumerate(items):
        for kind in ("response.output_item.added", "response.output_item.done"):
            events.append({"type": kind, "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": {"id": response_id, "usage": usage}})
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


async def answer_request(model: ScriptedModel, stream: trio.SocketStream) -> None:
    """Read one request, answer it, and leave the closing to the caller."""
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        match event:
            case h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            case h11.Request():
                request = event
            case h11.Data():
                body += event.data
            case _:
                return  # the client opened a connection and thought better of it
    assert request is not None
    if request.method == b"POST":
        kind = "text/event-stream"
        answer = event_stream(model.new_id(), model.respond(json.loads(body)["input"]))
    else:
        kind, answer = "application/json", b"[]"  # the list of models, among others
    headers = [("content-type", kind), ("content-length", str(len(answer))), ("connection", "close")]
    for part in (
        h11.Response(status_code=200, headers=headers),
        h11.Data(data=answer),
        h11.EndOfMessage(),
    ):
        await stream.send_all(connection.send(part) or b"")


@asynccontextmanager
async def scripted_model(turns: Sequence[Turn]) -> AsyncGenerator[ScriptedModel]:
    """Serve a script on a free loopback port for the length of the block."""
    async with trio.open_nursery() as nursery:  # its one child serves the port
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        model = ScriptedModel(listener.socket.getsockname()[1], iter(turns))
        nursery.start_soon(trio.serve_listeners, partial(answer_request, model), [listener])
        yield model
        nursery.cancel_scope.cancel()
