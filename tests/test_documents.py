"""The documents name tests and files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = list((ROOT / "tests").rglob("test_*.py"))
TESTS = {
    name
    for module in MODULES
    for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", module.read_text(), re.MULTILINE)
}
each = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)


@each
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"\btest_\w+", prose))
    assert named - TESTS - {module.stem for module in MODULES} == set()


@each
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"`((?:tests|bench|lttd|docs|tools|systemd)/[\w./-]+)`", text))
    links = {f"{document.parent}/{to}" for to in re.findall(r"\]\(([\w./-]+\.md)[)#]", text)}
    paths = {ROOT / name for name in named} | set(map(Path, links))
    assert {str(path) for path in paths if not path.exists()} == set()


def test_each_fault_names_its_tests() -> None:
    page = (ROOT / "docs/FAULTS.md").read_text()
    table = page.partition("\n|---")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) > 40
    without = [row.split("|")[1].strip() for row in table if "test_" not in row]
    assert without == []
