"""The pages for probes and for Prometheus: read by its own parser, compared with what has been done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemons import Daemon, running, start_daemon
from http_pages import Counts, counts, get, parse, value
from in_process import open_house
from tsupervise._metrics import CONTENT_TYPE, Histogram, Metrics, Now, ProcessBytes
from tsupervise._settings import Settings
from wire import connect

pytestmark = pytest.mark.ours_only("the reference has no such pages")


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[Daemon]:
    with running(start_daemon("ours", "--retained-bytes", "1000")) as daemon:
        yield daemon


@pytest.mark.case(160)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_a_page_answers_get_and_head_only(own_daemon: Daemon, path: str) -> None:
    """200, the same head for HEAD without a body; another method is told which ones there are."""
    status, body, headers = await get(own_daemon, path)
    assert (status, bool(body)) == (200, path == "/metrics")
    if body:
        assert headers["content-type"] == CONTENT_TYPE
    assert (await get(own_daemon, path, "HEAD"))[:2] == (200, "")
    status, body, headers = await get(own_daemon, path, "POST")
    assert (status, body, headers["allow"]) == (405, "", "GET,HEAD")


@pytest.mark.case(160)
async def test_the_text_is_what_prometheus_reads() -> None:
    """Each metric has its type and help, counters end in _total, and buckets add up."""
    with running(start_daemon("ours")) as daemon:
        async with connect(daemon.url) as peer:
            await peer.run("p", "true")
            _, text, _ = await get(daemon, "/metrics")
    families = list(text_string_to_metric_families(text))
    assert len(families) == text.count("# TYPE ") == text.count("# HELP ")
    for family in families:
        assert family.documentation
        assert family.name.startswith("tsupervise_")
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "histogram":
            total = {
                frozenset(s.labels.items()): s.value for s in family.samples if s.name.endswith("_count")
            }
            for sample in family.samples:
                if sample.labels.get("le") == "+Inf":
                    labels = frozenset(item for item in sample.labels.items() if item[0] != "le")
                    assert sample.value == total[labels]


def grown(before: Counts, after: Counts, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


@pytest.mark.case(161)
async def test_what_was_done_is_what_was_counted(own_daemon: Daemon) -> None:
    """Sessions, processes by result, requests by method and result, bytes of each kind: no more and no less."""
    before = await counts(own_daemon)
    async with connect(own_daemon.url) as peer:
        (await peer.start("cat", "cat", pipeStdin=True)).ok()
        (await peer.write("cat", b"12345", "w1")).ok()
        await peer.until_output("cat", b"12345")
        during = await counts(own_daemon)
        (await peer.terminate("cat")).ok()
        await peer.until_closed("cat")
        await peer.run("good", "true")
        await peer.run("bad", "false")
        assert (await peer.start("none", "/no/such/program")).error
        assert (await peer.process_read("nobody")).error
        assert (await peer.request("no/such/method", {})).error
        await peer.run("flood", "head", "-c", "200000", "/dev/zero")
        await peer.send_raw("no json")
        await peer.answer_to(-1)
    async with connect(own_daemon.url, resume=peer.session_id):
        after = await counts(own_daemon)

    assert value(during, "connections") == 1
    assert value(during, "sessions", state="attached") == 1
    assert value(during, "processes", state="running") == 1
    assert grown(before, during, "process_input_bytes_total") == 5
    assert grown(before, during, "process_output_bytes_total") == 5
    for name, growth in {
        "connections_opened_total": 2,
        "sessions_opened_total": 1,
        "sessions_resumed_total": 1,
        "sessions_ended_total": 0,
        "processes_started_total": 4,
        "process_output_bytes_total": 200_005,
        "malformed_messages_total": 1,
    }.items():
        assert grown(before, after, name) == growth, name
    for result, growth in {"success": 2, "failure": 1, "signal": 1, "start_failed": 1}.items():
        assert grown(before, after, "processes_ended_total", result=result) == growth, result
    for method, result, growth in (
        ("initialize", "ok", 2),
        ("process/start", "ok", 4),
        ("process/start", "internal_error", 1),
        ("process/read", "invalid_request", 1),
        ("process/write", "ok", 1),
        ("other", "method_not_found", 1),
    ):
        assert grown(before, after, "requests_total", method=method, result=result) == growth, (
            method,
            result,
        )
    assert grown(before, after, "request_duration_seconds_count", method="process/start") == 5
    assert grown(before, after, "output_evicted_bytes_total") >= 200_000 - (64 << 10)
    assert grown(before, after, "received_bytes_total") > 500
    # 200,000 bytes as base64, and the rest.
    assert 266_000 < grown(before, after, "sent_bytes_total") < 290_000


@pytest.mark.case(161)
async def test_what_is_spilled_is_not_evicted_and_kills_are_counted_by_means(tmp_path: Path) -> None:
    """Output that lies in a file is retained; who leaves the group is killed by what finds him there."""
    options = ("--retained-bytes", "1000", "--spill-dir", str(tmp_path), "--no-cgroup")
    with running(start_daemon("ours", *options)) as daemon:
        async with connect(daemon.url) as peer:
            await peer.run("flood", "head", "-c", "3000000", "/dev/zero")
            script = "setsid -f sh -c 'echo out; sleep 600'; sleep 600"
            (await peer.start("p", "sh", "-c", script)).ok()
            await peer.until_output("p", b"out\n")
            before = await counts(daemon)
            (await peer.terminate("p")).ok()
            await peer.until_closed("p")
            after = await counts(daemon)
    assert value(after, "output_evicted_bytes_total") == 0
    assert value(after, "spilled_bytes_total") > 2_000_000
    assert value(after, "spill_files_bytes") > 2_000_000
    assert grown(before, after, "kills_total", means="cgroup") == 0
    for means in ("group", "sweep"):
        assert grown(before, after, "kills_total", means=means) >= 1


@pytest.mark.case(161)
async def test_no_count_grows_by_what_strangers_think_up(own_daemon: Daemon) -> None:
    """However many methods and paths are asked for, there is one line for all that are none."""
    async with connect(own_daemon.url) as peer:
        for number in range(20):
            await peer.request(f"made/up{number}", {})
            await get(own_daemon, f"/made/up{number}")
    _, text, _ = await get(own_daemon, "/metrics")
    assert "made" not in text
    assert value(parse(text), "requests_total", method="other", result="method_not_found") >= 20


@pytest.mark.case(161)
async def test_totals_do_not_fall_when_processes_are_forgotten(autojump_clock: object) -> None:
    """What went through a process still counts when nobody can ask for it any more, and its end does if it was
    killed with its session."""
    settings = Settings(detached_ttl_s=5)
    async with open_house(settings) as house:
        peer = await house.connect()
        (await peer.start("p", pipeStdin=True)).ok()
        house.children[0].say(b"x" * 1000)
        await peer.until(lambda: bool(peer.events))
        before = parse(house.supervisor.metrics_text())
        (session,) = house.supervisor.sessions
        await peer.drop()
        await session.over.wait()
        after = parse(house.supervisor.metrics_text())
    name = "process_output_bytes_total"
    assert value(before, name) == value(after, name) == 1000
    assert value(before, "sent_bytes_total") <= value(after, "sent_bytes_total")
    assert value(after, "sessions_ended_total") == 1
    assert value(after, "processes_ended_total", result="killed") == 1
    assert value(after, "connections") == 0


@pytest.mark.case(160)
async def test_a_draining_daemon_is_alive_and_not_ready() -> None:
    """A balancer sends nothing new to it, and nobody restarts it; Prometheus still sees what it does."""
    with running(start_daemon("ours", "--drain", "600")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sleep", "600")).ok()
            assert value(await counts(daemon), "draining") == 0
            daemon.process.send_signal(signal.SIGTERM)
            status, body = 200, ""
            while status == 200:
                status, body, _ = await get(daemon, "/readyz")
            assert (status, body) == (503, "the daemon is shutting down")
            assert (await get(daemon, "/livez"))[0] == 200
            assert value(await counts(daemon), "draining") == 1
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0


def test_a_duration_of_a_bound_is_within_it() -> None:
    """As Prometheus means `le`: less than or equal."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.2, 1.0, 5.0):
        histogram.observe(seconds)
    assert list(histogram.samples("h", 'a="b"')) == [
        'h_bucket{a="b",le="0.1"} 1',
        'h_bucket{a="b",le="1.0"} 3',
        'h_bucket{a="b",le="+Inf"} 4',
        'h_sum{a="b"} 6.3',
        'h_count{a="b"} 4',
    ]


def test_an_error_code_of_nobody_has_a_label_too() -> None:
    """A code that the protocol does not have is counted as `error`."""
    metrics = Metrics()
    metrics.answered("process/list", -1, 0.1)
    now = Now("1", 0.0, False, {}, {}, ProcessBytes(), 0, 0, 0, {}, 1)
    assert value(parse(metrics.render(now)), "requests_total", method="process/list", result="error") == 1
