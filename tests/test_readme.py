"""What the documents show is what happens: their examples are run, their numbers compared with the code.

A `console` block is a dialogue with bash, a `terminal` block is one that needs a terminal; a `python` block is a
program, and the `text` block behind it is what it prints. In what is expected, `...` stands for anything, and so
does a number that differs each time, such as a pid. All of it talks to one daemon, started by the README's own
command at a port of its choosing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from daemons import Daemon, start_daemon
from terminals import exit_code, spawn

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "protocol" / "README.md")

URL = "ws://127.0.0.1:4500"
"""Where the README's daemon listens."""

RUN_S = 30.0
"""A bound on a hang, far above what any example takes."""


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text("utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def python_examples() -> Iterator[object]:
    for document in DOCUMENTS:
        blocks = [*blocks_of(document), Block("", "", 0)]
        for block, following in pairwise(blocks):
            if block.language == "python":
                output = following.text if following.language == "text" else ""
                yield pytest.param(block.text, output, id=f"{document.relative_to(ROOT)}:{block.line}")


def commands_of(block: Block) -> list[tuple[str, str]]:
    """The dialogue in a console block: each command with what it prints, both streams as they come."""
    turns = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert turns[0] == "", "a console block begins with a command"
    return [(command, output) for command, _, output in (turn.partition("\n") for turn in turns[1:])]


UID = re.compile(r"\b[0-9a-f]{6}-\d+\b")


def without_numbers(text: str) -> str:
    """The text with the same name for every uid, and tables without their widths and numbers."""
    lines = UID.sub("UID", text).splitlines(keepends=True)
    return "".join(
        re.sub(r"\d+", "N", re.sub(r" +", " ", line)) if line.startswith(("UID ", "ID ")) else line
        for line in lines
    )


def assert_printed(expected: str, printed: str) -> None:
    expected, printed = without_numbers(expected), without_numbers(printed)
    pattern = re.escape(expected).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, printed), f"the document says\n{expected}\nand it printed\n{printed}"


@pytest.fixture(scope="module")
def readme_daemon() -> Iterator[Daemon]:
    running = start_daemon("ours")
    yield running
    assert running.stop() == 0


@pytest.fixture
def environment(readme_daemon: Daemon) -> dict[str, str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return {**os.environ, "PATH": path}


def run(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return done.stdout


def test_the_tour_is_what_happens(readme_daemon: Daemon, environment: dict[str, str]) -> None:
    """Every command of the tour prints what the README says, typed one after the other into one shell."""
    turns = [
        turn for block in blocks_of(README) if block.language == "console" for turn in commands_of(block)
    ]
    (run_command, run_output), *turns = turns
    assert run_command == f"tsupervise run --listen {URL}"
    assert run_output == f"{URL}\n", "the daemon prints where it listens"
    assert len(turns) >= 8, "the tour has not shrunk to nothing"
    mark = "-- the next command --"
    host = readme_daemon.url.removeprefix("ws://")
    script = f"\necho '{mark}'\n".join(command for command, _ in turns).replace("127.0.0.1:4500", host)
    printed = run(["bash", "-c", script], environment).split(f"{mark}\n")
    assert len(printed) == len(turns)
    for (_, output), text in zip(turns, printed, strict=True):
        assert_printed(output, text.replace("\r\n", "\n"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_needs_a_terminal_is_what_happens(readme_daemon: Daemon, environment: dict[str, str]) -> None:
    """Lines behind the prompts are typed into a shell and into what it attaches to; the others come in order."""
    [block] = [block for block in blocks_of(README) if block.language == "terminal"]
    keys = {"(Ctrl-P Ctrl-Q)": "\x10\x11"}
    env = {**environment, "TSUPERVISE_URL": readme_daemon.url, "PS1": "$ ", "TERM": "dumb"}
    child = spawn(["bash", "--norc", "--noprofile", "-i"], env=env)
    typed: set[str] = set()
    for line in block.text.splitlines():
        prompt, text = line[:2], line[2:]
        # What was typed at the inner prompt before, comes back as recent output.
        if prompt == "$ " or (prompt == "> " and line not in typed):
            child.expect_exact(prompt)
            child.send(keys.get(text, f"{text}\r"))
            typed |= {line} if prompt == "> " else set()
        else:
            child.expect(re.escape(UID.sub("UID", line)).replace("UID", UID.pattern) + "\r\n")
    child.sendline("exit")
    assert exit_code(child) == 0


@pytest.mark.parametrize(("program", "output"), list(python_examples()))
def test_a_python_example_prints_what_it_says(
    program: str, output: str, readme_daemon: Daemon, environment: dict[str, str]
) -> None:
    """A program of the documents runs as it stands, and its output is the block behind it."""
    assert output, "an example shows what it prints"
    assert URL in program
    text = program.replace(URL, readme_daemon.url)
    assert_printed(output, run([sys.executable, "-X", "dev", "-W", "error", "-c", text], environment))


def test_both_commands_of_the_quick_start_are_whole() -> None:
    """Each sets up all that it needs, in the same way, and CI runs the tests by the same command."""
    quick_start = README.read_text("utf-8").split("## Quick start")[1].split("\n## ")[0]
    commands = re.findall(r"^```sh\n(.*)\n```$", quick_start, re.MULTILINE)
    assert len(commands) == 2, "two blocks of one line each"
    setup = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/"
    assert [command.removeprefix(setup) for command in commands] == [
        "tsupervise exec -- echo hello",
        "pytest",
    ]
    ci_lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert '"$bin/pytest"' in ci_lines
    assert any(line.endswith("install --quiet --disable-pip-version-check -e '.[dev]'") for line in ci_lines)


def limits() -> Iterator[object]:
    row = re.compile(r"^\| .* \| ([^|]+) \| `(tsupervise\w*\.[\w.]+)` \|$", re.MULTILINE)
    for document in DOCUMENTS:
        for limit, constant in row.findall(document.read_text("utf-8")):
            yield pytest.param(limit, constant, id=f"{document.relative_to(ROOT)}:{constant}")


def value_of(constant: str) -> float:
    """The value of `package.module.NAME` or `package.module.Class.name`."""
    package, module, *names = constant.split(".")
    value: object = import_module(f"{package}.{module}")
    for name in names:
        # A default of a dataclass with slots is in its fields only.
        fields = getattr(value, "__dataclass_fields__", {})
        value = fields[name].default if name in fields else getattr(value, name)
    assert isinstance(value, (int, float))
    return value


def written(value: float, constant: str) -> str:
    """A limit in the words of the documents, by the unit in its name."""
    if constant.lower().endswith("_s"):
        return f"{value:g} s"
    if constant.lower().endswith("bytes"):
        return f"{value / (1 << 20):g} MiB" if value >= 1 << 20 else f"{value / (1 << 10):g} KiB"
    return f"{value:,}"


@pytest.mark.parametrize(("limit", "constant"), list(limits()))
def test_a_documented_limit_is_the_one_that_holds(limit: str, constant: str) -> None:
    """A number in a table of limits is that of the constant beside it."""
    assert limit == written(value_of(constant), constant)


def test_documents_point_to_what_is_there() -> None:
    """A link to a file, or to a heading of one, has something to show."""
    for document in (*DOCUMENTS, ROOT / "protocol" / "CONFORMANCE.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text("utf-8")):
            if "://" in target:
                continue
            name, _, heading = target.partition("#")
            file = (document.parent / name) if name else document
            assert file.exists(), f"{document.name} points to {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
                assert heading in anchors, f"{document.name} points to {target}"
