"""CONFORMANCE.md and the tests name the same promises: what is called shown has a test, the rest has none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
CONFORMANCE = TESTS.parent / "protocol" / "CONFORMANCE.md"

NUMBERS = (*range(1, 165), *range(201, 296), *range(300, 333), *range(340, 356), 360, 361)


def shown_by_number() -> dict[int, str]:
    """The last column of each row: `yes`, `part` or `no`."""
    rows = re.findall(r"^\| (\d+) \| .+ \| (\w+) \|$", CONFORMANCE.read_text("utf-8"), re.MULTILINE)
    assert len({number for number, _ in rows}) == len(rows), "a number has one row"
    return {int(number): shown for number, shown in rows}


def marked_numbers() -> dict[int, set[str]]:
    """The numbers of all `pytest.mark.case` in the test files, with the files that name them."""
    marked: dict[int, set[str]] = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for number in cases_in(ast.parse(path.read_text("utf-8"))):
            marked.setdefault(number, set()).add(path.name)
    return marked


def cases_in(tree: ast.AST) -> Iterator[int]:
    # Anywhere in a file, not on functions only: `pytestmark` and `pytest.param(marks=...)` count as well.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
            for argument in node.args:
                number = ast.literal_eval(argument)
                assert isinstance(number, int)
                yield number


def test_every_promise_has_its_row() -> None:
    """The page lists each number once, in order, and says of each whether it is shown."""
    shown = shown_by_number()
    assert list(shown) == list(NUMBERS)
    assert set(shown.values()) <= {"yes", "part", "no"}


def test_what_is_called_shown_has_a_test_and_the_rest_has_none() -> None:
    """A promise is marked by a test if and only if the page calls it shown, be it in part."""
    claimed = {number for number, shown in shown_by_number().items() if shown != "no"}
    marked = marked_numbers()
    unknown = sorted(set(marked) - set(NUMBERS))
    assert not unknown, f"named by tests, and not in CONFORMANCE.md: {unknown}"
    untested = sorted(claimed - set(marked))
    assert not untested, f"called shown in CONFORMANCE.md, and named by no test: {untested}"
    unclaimed = {number: files for number, files in sorted(marked.items()) if number not in claimed}
    assert not unclaimed, f"named by tests, and CONFORMANCE.md says no: {unclaimed}"
