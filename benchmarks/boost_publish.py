"""Bring the finished cells of a boost study into docs/results, and write the pages from all that lie there.

    python benchmarks/boost_publish.py STUDY

Of each cell everything is kept but the trained hosts and the report; one of the same name that lies there is replaced.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boost_page
import boost_study

from inpaint_distill.config import load_yaml
from inpaint_distill.files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROTOCOL = Path(boost_study.__file__).with_suffix(".yaml")
LEFT_OUT = shutil.ignore_patterns("runs", "report.html", "inputs.json", "settings.json", ".lock")


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy the cells, collect, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of boost_study.py's cells")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="folder of README.md and docs")
    parser.add_argument("--protocol", type=Path, default=PROTOCOL)
    parsed = parser.parse_args(arguments)
    if not parsed.study.is_dir():
        parser.error(f"{parsed.study} is no folder")
    protocol = load_yaml(parsed.protocol)
    boost_study.collect(parsed.study, protocol)
    results = parsed.root / "docs" / "results"
    for report in sorted(parsed.study.glob("*/report.html")):  # written last: the cell is finished
        cell = results / "boost-study" / report.parent.name
        shutil.rmtree(cell, ignore_errors=True)
        shutil.copytree(report.parent, cell, ignore=LEFT_OUT)
    write_pages(parsed.root, protocol)


def write_pages(root: Path, protocol: Mapping[str, Any]) -> None:
    """Collect the cells that are published, and write the pages."""
    results = root / "docs" / "results"
    write_json(results / "boost_study.json", boost_study.collect(results / "boost-study", protocol))
    boost_page.main(["--root", str(root)])


if __name__ == "__main__":
    main()
