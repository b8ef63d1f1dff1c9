"""Pages of a daemon, fetched by the standard library, and its counts, read by Prometheus' own parser."""

from __future__ import annotations

import http.client

import trio
from prometheus_client.parser import text_string_to_metric_families

from daemons import Daemon
from wire import PATIENCE_S


async def get(daemon: Daemon, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    """Status, body and headers (names in lower case) of one request."""
    return await trio.to_thread.run_sync(_get, daemon, path, method)


def _get(daemon: Daemon, path: str, method: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(*daemon.address, timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read().decode(), headers
    finally:
        connection.close()


Labels = frozenset[tuple[str, str]]
Counts = dict[tuple[str, Labels], float]


def parse(text: str) -> Counts:
    """The value of each sample, by its name (without the common prefix) and labels."""
    return {
        (sample.name.removeprefix("tsupervise_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def counts(daemon: Daemon) -> Counts:
    """What the daemon has counted so far."""
    status, text, _ = await get(daemon, "/metrics")
    assert status == 200
    return parse(text)


def value(counts: Counts, name: str, **labels: str) -> float:
    """One number; 0 if it is not there, as for whoever draws it."""
    return counts.get((name, frozenset(labels.items())), 0.0)
