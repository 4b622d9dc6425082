"""Write the README's results from the studies under ``docs/results``.

    python benchmarks/readme_results.py

Each study is a folder made by ``inpaint-distill boost --out docs/results/NAME``; its figures and its table are shown as
they are in ``result.json``.
"""

from __future__ import annotations

from pathlib import Path

from inpaint_distill.training.result import made_contrasts, main_split, read_result
from inpaint_distill.training.tables import SPLIT_LABELS, headlines, markdown_table, overview

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def section(folder: Path) -> str:
    """Return one study's picture, sentences and table; of an ablation one table over all holes."""
    result = read_result(folder / "result.json")
    contrasts, split = made_contrasts(result), main_split(result)
    ablated = len({contrast.arm for contrast in contrasts}) > 1
    settings, data, where = result["settings"], result["data"], folder.relative_to(ROOT).as_posix()
    shown = "input, host, variants, truth" if ablated else "input, host, host + distillation, truth"
    title = (
        f"{result['host']['name']}, {result['host']['parameters']:,} parameters, {settings['size']} px, "
        f"{data['train']:,} training and {data[split]} {SPLIT_LABELS[split]} ({data['source']}), "
        f"{settings['steps']:,} steps of {settings['batch']}, {len(settings['seeds'])} paired seeds, "
        "learning rate tuned on the bare host"
    )
    outcomes = [outcome for outcome, _ in headlines(result)]
    if ablated:
        found = len(outcomes) - outcomes.count("not shown")
        words = f"Differences with their 95% intervals, of which {found} of {len(outcomes)} exclude zero."
        rows = [
            f"| {arm.text} | {against.text} | {value.text} | {step.text} |\n"
            for arm, against, value, _, step, _ in overview(result, split, ("hole_psnr",))
        ]
        table = "| arm | against | hole PSNR (dB) ↑ | step |\n|---|---|--:|--:|\n" + "".join(rows)
    else:
        words, table = " ".join(text for _, text in headlines(result)), markdown_table(result)
    return (
        f"![{shown}]({where}/preview.png)\n\n**{title}.** {words} "
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
