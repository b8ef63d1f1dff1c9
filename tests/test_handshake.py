"""The handshake of one connection: every phase meets every kind of message."""

from __future__ import annotations

import pytest

from tsupervise_protocol.errors import ErrorCode, ProtocolViolation, RpcError
from tsupervise_protocol.handshake import Handshake, Phase
from tsupervise_protocol.methods import METHODS

ONCE = "initialize may only be sent once per connection"


def handshake_in(phase: Phase) -> Handshake:
    """A handshake that has come to a phase the way a client brings it there."""
    handshake = Handshake()
    if phase is not Phase.NEW:
        handshake.initialize_succeeded()
    if phase is Phase.READY:
        handshake.check_notification("initialized")
    assert handshake.phase is phase
    return handshake


def refusal(phase: Phase, method: str) -> str | None:
    """The text that a request of this method should meet, or None if it may pass."""
    family = METHODS[method].family
    match phase, method:
        case Phase.NEW, "initialize":
            return None
        case Phase.NEW, _:
            return f"client must call initialize before using {family} methods"
        case _, "initialize":
            return ONCE
        case Phase.INITIALIZED_BY_SERVER, _:
            return f"client must send initialized before using {family} methods"
        case _:
            return None


@pytest.mark.case(39, 40)
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("method", list(METHODS))
def test_a_request_passes_or_meets_its_text(phase: Phase, method: str) -> None:
    """Every method in every phase; a check changes nothing, so that a failed initialize does not count."""
    handshake = handshake_in(phase)
    expected = refusal(phase, method)
    if expected is None:
        handshake.check_request(method, METHODS[method].family)
    else:
        with pytest.raises(RpcError) as caught:
            handshake.check_request(method, METHODS[method].family)
        assert (caught.value.code, caught.value.message) == (ErrorCode.INVALID_REQUEST, expected)
    assert handshake.phase is phase


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("exec", "process/start"),
        ("exec", "process/list"),
        ("environment info", "environment/info"),
        ("environment status", "environment/status"),
    ],
)
def test_families_have_the_names_that_other_servers_use(family: str, method: str) -> None:
    """The words of the texts are known to clients."""
    assert METHODS[method].family == family


@pytest.mark.case(40)
@pytest.mark.parametrize("phase", [Phase.INITIALIZED_BY_SERVER, Phase.READY])
def test_initialized_opens_everything_and_may_come_again(phase: Phase) -> None:
    """The notification leads to READY, and changes nothing there."""
    handshake = handshake_in(phase)
    handshake.check_notification("initialized")
    assert handshake.phase is Phase.READY


@pytest.mark.case(31)
def test_initialized_before_initialize_is_a_violation() -> None:
    """The one order that cannot be answered ends the connection."""
    with pytest.raises(ProtocolViolation, match="initialized came before initialize"):
        handshake_in(Phase.NEW).check_notification("initialized")


@pytest.mark.case(31)
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("method", ["initialize", "process/start", "process/output", "", "no/such"])
def test_every_other_notification_is_a_violation(phase: Phase, method: str) -> None:
    """In each phase, and the text names what came."""
    handshake = handshake_in(phase)
    with pytest.raises(ProtocolViolation, match=repr(method)):
        handshake.check_notification(method)
    assert handshake.phase is phase
