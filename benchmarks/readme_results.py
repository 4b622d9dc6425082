"""Write the README's results from the studies under ``docs/results``.

    python benchmarks/readme_results.py

Each study is a folder made by ``inpaint-distill boost --out docs/results/NAME``; its figures and its table are shown as
they are in ``result.json``.
"""

from __future__ import annotations

from pathlib import Path

from inpaint_distill.training.result import made_contrasts, main_split, read_result
from inpaint_distill.training.tables import headlines, markdown_overview, markdown_table

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def section(folder: Path) -> str:
    """Return one study's picture, sentences and table."""
    result = read_result(folder / "result.json")
    ablated = len({contrast.arm for contrast in made_contrasts(result)}) > 1
    table = markdown_overview(result, [main_split(result)]) if ablated else markdown_table(result)
    shown = "input, host, variants, truth" if ablated else "input, host, host + distillation, truth"
    settings, data, where = result["settings"], result["data"], folder.relative_to(ROOT).as_posix()
    title = (
        f"{result['host']['name']}, {result['host']['parameters']:,} parameters, {settings['size']} px, "
        f"{data['train']:,} training and {data['test']} test images ({data['source']}), {settings['steps']:,} steps of "
        f"{settings['batch']}, {len(settings['seeds'])} paired seeds, learning rate tuned on the bare host"
    )
    sentences = " ".join(text for _, text in headlines(result))
    return (
        f"![{shown}]({where}/preview.png)\n\n**{title}.** {sentences} "
        f"[Report]({where}/report.html), [all metrics]({where}/table.md), [JSON]({where}/result.json), "
        f"[curves]({where}/curves.png), [panels]({where}/panels.png).\n\n"
        f"{table}"
    )


def main() -> None:
    """Replace the block between the two marks."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    studies = sorted((ROOT / "docs" / "results").glob("*/result.json"))
    body = "\n".join(section(study.parent) for study in studies)
    readme.write_text(f"{before}{BEGIN}\n{body}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
