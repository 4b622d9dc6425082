"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)\)")


def links(page):
    """Return the texts and targets of a page's links into the repository."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    return [(text, (page.parent / target)) for text, target in found if "://" not in target]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_repository_leads_somewhere(page):
    assert [str(target) for _, target in links(page) if not target.exists()] == []


def test_every_promise_has_a_test():
    """A row is a promise, the hosts that it is tested on, and a test."""
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs" / "promises.md").read_text("utf-8").splitlines()
        if line.startswith("| ")
    ]
    promises = [row for row in rows if row[0] != "| promise"]
    assert len(promises) > 40
    assert [row for row in promises if len(row) != 3 or not row[2].startswith("[test_")] == []


def test_every_promise_names_a_test_of_its_file():
    promised = [(text, file) for text, file in links(ROOT / "docs" / "promises.md") if text.startswith("test_")]
    assert len(promised) > 20
    assert [name for name, file in promised if f"def {name}(" not in file.read_text(encoding="utf-8")] == []
