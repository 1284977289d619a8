"""The paper's tables, rendered from our copy of its scores, are the paper's tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines import paper_tables
from baselines.benchmarks.spec import BENCHMARKS
from baselines.metrics.measuring import COMPARING, NAMES
from baselines.results.records import ScoredSample, write_records
from baselines.score import PUBLISHED_SETTINGS
from baselines.tables.conditions import PUBLISHED_JUDGE, Conditions
from baselines.tables.grid import to_csv, to_latex, to_markdown
from baselines.tables.paper import benchmarks, compare, normal, printed, published_judge, row_of, tables, title_of
from emu3.errors import UserError

SOURCE = Path(__file__).parents[4] / "shared/data/published-tables.json"

Make = Callable[..., ScoredSample]


@pytest.fixture(scope="module")
def source() -> Any:
    """The scores as they were read from the paper, from which ours are not made at run time."""
    if not SOURCE.exists():
        pytest.skip("the source of the published scores is not here")
    return json.loads(SOURCE.read_text(encoding="utf-8"))


def table(number: int) -> Any:
    return next(table for table in tables() if table.number == number)


def cells(text: str) -> list[list[str]]:
    """The cells of the body of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("number", "key", "skipped"),
    [(2, "table2_main", 0), (3, "table3_chain_of_thought", 1)],
)
def test_tables_of_benchmarks_as_printed(source: Any, number: int, key: str, skipped: int) -> None:
    """Guards every cell: name, the six scores and AVG, two decimals, in the paper's order."""
    rows = cells(to_markdown(printed(table(number))))[skipped:]
    assert rows == [
        [entry["name"], *(f"{entry['scores'][name]:.2f}" for name in source["columns"]), f"{entry['avg']:.2f}"]
        for entry in source[key]
    ]


def test_verifier_and_best_of_n_as_printed(source: Any) -> None:
    verifier, sft, rl = source["table6_11_verifier_and_best_of_n"]
    scores = [[*entry["scores"].values(), entry["avg"]] for entry in (verifier, sft, rl)]
    assert [list(table(6).rows[1].cells), *(list(table(11).rows[place].cells) for place in (1, 3))] == scores
    assert table(11).rows[2].cells == table(2).rows[10].cells


def test_parts_as_printed(source: Any) -> None:
    parts = source["table7_parts_sft_s_then_unscaled_rl"]
    rows = cells(to_markdown(printed(table(7))))
    assert [row[1:] for row in rows[:8]] == [
        [f"{scores[column][place]:.1f}" for column in (*source["columns"], "AVG")]
        for scores in parts.values()
        for place in (0, 1)
    ]


def test_every_column_can_be_measured() -> None:
    """Guards a column that no score can ever fill: Table 10 asked for PSNR against a target, which PIE-Bench lacks."""
    columns = [column for table in tables() for column in table.columns if not column.average]
    assert {column.metric for column in columns} <= {*NAMES, "viescore"}
    assert {column.benchmark for column in columns} <= set(BENCHMARKS)
    assert not {column.metric for column in table(10).columns} & set(COMPARING)


def test_tasks_and_pie_bench_as_printed(source: Any) -> None:
    assert [list(row.cells) for row in table(10).rows] == [
        source["table10_pie_bench"][name] for name in ("EditAR", "EARL")
    ]
    for number, key in ((14, "omniedit_tasks"), (15, "emuedit_tasks"), (16, "table16_vismin")):
        scores = list(source[f"{key}_sft_s_then_earl"].values())
        assert [list(row.cells) for row in table(number).rows] == [[pair[place] for pair in scores] for place in (0, 1)]


def test_the_judge_of_the_paper_has_one_name() -> None:
    assert published_judge() == PUBLISHED_JUDGE == PUBLISHED_SETTINGS.model


def test_avg_is_the_plain_mean_of_the_six() -> None:
    """Guards the meaning of AVG; 0.01 covers that the paper averaged scores with more decimals than it prints."""
    for row in (*table(2).rows, *table(3).rows, *table(11).rows):
        assert row.cells[-1] == pytest.approx(sum(row.cells[:-1]) / 6, abs=0.01)


def test_every_row_has_a_cell_for_every_column() -> None:
    for each in tables():
        assert all(len(row.cells) == len(each.columns) for row in each.rows), each.number
        assert all(column.benchmark or column.average for column in each.columns)


def test_models_are_known_by_their_names_here() -> None:
    """Guards the main table against a name that means two of its rows."""
    names = [name for row in table(2).rows for name in row.models]
    assert len(names) == len(set(names))
    earl = row_of("mair-lab/earl-sft-simple.rl-simple-n-complex-scaled")
    assert earl is not None and earl.cells[-1] == 4.8 and row_of("EARL") == earl
    assert row_of("sft_s__rl_sc") == table(2).rows[10]
    assert row_of("sft_think_s") == table(3).rows[1]
    assert row_of("somebody") is None
    assert (title_of("magic_brush"), title_of("mine"), normal("I2E-Bench")) == ("MagicBrush", "mine", "i2ebench")


def test_known_results_give_known_cells(make_score: Make) -> None:
    """Guards selection: tasks, parts, failures and scales each reach their own cell and no other."""
    scores = [
        make_score("0", 4.0, model="sft_s", benchmark="vismin", task="counting", parts={"edit_success": 3.0}),
        make_score("1", 6.0, model="sft_s", benchmark="vismin", task="counting", parts={"edit_success": 5.0}),
        make_score("2", 9.0, model="sft_s", benchmark="vismin", task="relation", parts={"edit_success": 9.0}),
        make_score("3", None, model="sft_s", benchmark="vismin", task="relation"),
        make_score("0", 0.035, model="earl", benchmark="piebench", metric="structure_distance_source"),
    ]
    found = Conditions(judge="gpt-4o-mini-2024-07-18", protocol="published")
    conditions = {(score.model, score.benchmark): found for score in scores}
    vismin = compare(table(16), scores, conditions).rows
    assert list(vismin[0]) == ["SFT (S)", "ours", "5.00 [4.00, 6.00]", "9.00"]
    assert list(vismin[1]) == ["", "published", "4.22", "2.91"]
    assert list(vismin[2]) == ["", "difference", "+0.78", "+6.09"]
    assert list(vismin[3]) == ["", "n (failed)", "2 (0)", "1 (1)"]
    assert list(vismin[4]) == ["", "failures as 0", "5.00", "4.50"]
    assert list(vismin[5])[1:] == ["published", "5.72", "4.14"]
    parts = compare(table(7), scores, conditions).rows
    assert parts[0][0] == "Edit success, SFT (S)" and parts[0][6].startswith("5.7 [3.0, ")
    assert parts[0][2] == "–" and parts[0][8] == "–"
    assert compare(table(10), scores, {}).rows[1][:3] == ["EARL", "ours", "35.00"]


def test_all_tables_are_written_from_the_first_result_on(make_score: Make, tmp_path: Path) -> None:
    scores = [make_score(str(place), 5.0 + place, model="earl", benchmark="omniedit") for place in range(3)]
    write_records(tmp_path / "results/earl/scores.parquet", scores, {})
    written = paper_tables.run(tmp_path / "results", tmp_path / "out", resamples=100)
    assert [path.name for path in written] == [f"table_{number:02d}.md" for number in (2, 3, 6, 7, *range(10, 18))]
    for path in written:
        assert all(path.with_suffix(suffix).stat().st_size for suffix in (".tex", ".csv", ".png"))
    assert "| ours | 6.00 [5.00, 7.00] |" in (tmp_path / "out/table_02.md").read_text()
    assert "ours" not in (tmp_path / "out/table_03.md").read_text()
    first = (tmp_path / "out/tables.md").read_bytes()
    paper_tables.run(tmp_path / "results", tmp_path / "out", resamples=100)
    assert (tmp_path / "out/tables.md").read_bytes() == first


def test_nothing_of_ours_is_said(make_score: Make, tmp_path: Path) -> None:
    """Guards a reviewer who reads published lines alone and takes them for a comparison."""
    write_records(tmp_path / "results/scores.parquet", [make_score("a", 1.0, model="my_model")], {})
    with pytest.raises(UserError, match=r"no row for what is under .*: the models are called my_model"):
        paper_tables.run(tmp_path / "results", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_of_one_protocol(make_score: Make, tmp_path: Path) -> None:
    """Guards a table that mixes two ways of scoring."""
    scores = [make_score("0", 5.0, model="earl", benchmark="omniedit")]
    settings = {"judge": "gpt-4o-mini-2024-07-18", "protocol": "published", "prompts": "ab" * 32}
    write_records(tmp_path / "results/published/scores.parquet", scores, settings)
    scores = [make_score("0", 7.0, model="sft_s", benchmark="omniedit")]
    write_records(tmp_path / "results/ours/scores.parquet", scores, settings | {"protocol": "ours"})
    paper_tables.run(tmp_path / "results", tmp_path / "all", resamples=10)
    paper_tables.run(tmp_path / "results", tmp_path / "out", protocol="published", resamples=10)
    whole, one = ((tmp_path / name / "table_02.md").read_text() for name in ("all", "out"))
    assert "| ours | 7.00 |" in whole and "| difference | none: other protocol |" in whole
    assert "| ours | 7.00 |" not in one and "| difference | -1.39 |" in one
    for suffix in (".md", ".tex", ".csv"):
        assert "wording abababab" in (tmp_path / "out/table_02").with_suffix(suffix).read_text()
    (tmp_path / "results/published/scores.parquet").unlink()
    with pytest.raises(UserError, match="by the protocol 'published'"):
        paper_tables.run(tmp_path / "results", tmp_path / "none", protocol="published")


def test_two_runs_with_one_name_are_refused(make_score: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no scores.parquet under"):
        paper_tables.run(tmp_path, tmp_path / "out")
    for name in ("one", "two"):
        write_records(tmp_path / name / "scores.parquet", [make_score("a", 1.0)], {})
    with pytest.raises(UserError, match="two scores for sample 'a'"):
        paper_tables.run(tmp_path, tmp_path / "out")


def test_latex_and_csv_say_the_same() -> None:
    grid = printed(table(2))
    latex = to_latex(grid)
    assert latex.count(r"\\") == 1 + len(grid.rows) and r"\begin{tabular}{lrrrrrrr}" in latex
    assert r"SFT (S) -\textgreater{} RL (S+C) & 6.33 & 4.28 & 3.99 & 4.26 & 4.48 & 4.08 & 4.57 \\" in latex
    assert to_csv(grid).splitlines()[1] == "MagicBrush,3.43,3.28,3.01,3.64,3.48,3.06,3.32"
    assert len(benchmarks()) == 6
