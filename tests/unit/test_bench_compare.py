"""`bench compare` and `bench budget`: what counts as better, worse, noise, over; and a run's page.

Each judge is shown to be able to say no.
"""

from __future__ import annotations

import json
import random
import re
from argparse import Namespace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import __main__ as command_line
from bench import budget, compare, page, report
from bench.budget import Line, Ratio, Run
from bench.scenarios import peers


def a_run(centre: float = 3.0, spread: float = 0.2, seed: int = 1, **more: Any) -> dict[str, Any]:
    """What a scenario writes: ten windows about a centre."""
    rng = random.Random(seed)
    windows = [{"p99_ms": round(rng.gauss(centre, spread), 3), "generator_lag_p99_ms": rng.random()} for _ in range(10)]
    machine = {"cores": 2, "cpu": "Xeon <1>", "memory_gib": 24.0, "kernel": "6", "load_1m": rng.random()}
    return {
        "scenario": "send",
        "at": "2026-11-24T00:00:00Z",
        "machine": machine,
        "versions": {"chatd": "1"},
        "settings": {},
        "options": {"rate": "100"},
        "void": False,
        "over": [],
        "budget": {"most": {"p99_ms": 500.0}, "least": {}},
        "rate": 100.0,
        "p99_ms": centre,
        "lost": 0,
        "highest_rate": 100.0,
        "windows": windows,
        "curves": {"delivery": [[0, 1.0], [50, 2.0], [99, centre], [100, 9.0]]},
        "series": {"pss": [[0, 10.0], [5, 11.0], [10, 10.5]]},
    } | more


def word(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    return next(v.word for v in compare.compare(a, b, 0.05) if v.name == name)


# ---- compare -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2, 12))
def test_two_runs_of_the_same_are_the_same(seed: int) -> None:
    assert word("p99_ms", a_run(), a_run(seed=seed)) == "same"


@pytest.mark.parametrize(("centre", "expected"), [(4.0, "worse"), (2.0, "better"), (3.1, "same")])
def test_a_change_beyond_noise_is_told(centre: float, expected: str) -> None:
    assert word("p99_ms", a_run(spread=0.1), a_run(centre, spread=0.1, seed=5)) == expected


def test_the_same_change_in_a_noisy_run_is_noise() -> None:
    assert word("p99_ms", a_run(spread=1.5), a_run(4.0, spread=1.5, seed=5)) == "same"


def test_a_change_below_five_percent_never_counts() -> None:
    assert word("p99_ms", a_run(spread=0.0), a_run(3.14, spread=0.0)) == "same"
    assert word("p99_ms", a_run(spread=0.0), a_run(3.16, spread=0.0)) == "worse"


def test_too_few_windows_give_no_verdict() -> None:
    a, b = a_run(), a_run(9.0)
    a["windows"] = a["windows"][:4]
    assert word("p99_ms", a, b) == "unknown"


def test_one_value_each_gives_no_verdict_and_counts_give_one() -> None:
    assert word("highest_rate", a_run(), a_run(highest_rate=50.0)) == "unknown"
    assert word("lost", a_run(), a_run(lost=1)) == "worse"
    assert word("lost", a_run(lost=1), a_run()) == "better"


def test_what_never_came_is_worse_than_all_that_did() -> None:
    b = a_run(windows=[{"p99_ms": None}] * 10)
    assert word("p99_ms", a_run(), b) == "worse"
    assert word("p99_ms", b, a_run()) == "better"


def test_of_some_figures_more_is_better() -> None:
    a, b = ([{"hellos_per_s": rate + n} for n in range(10)] for rate in (1_000.0, 2_000.0))
    assert word("hellos_per_s", a_run(windows=a), a_run(windows=b)) == "better"


def test_the_generators_own_figures_are_not_judged() -> None:
    assert [v.name for v in compare.compare(a_run(), a_run(), 0.05) if "lag" in v.name or v.name == "rate"] == []


def test_what_differs_between_the_runs_is_told() -> None:
    b = a_run(versions={"chatd": "2"}, options={"rate": "200"}, void=True)
    told = compare.differences(a_run(), b)
    assert [line.partition(":")[0] for line in told] == ["options", "versions", "B is void"]
    with pytest.raises(ValueError, match="different scenarios"):
        compare.differences(a_run(), a_run(scenario="idle"))


@pytest.mark.parametrize(
    ("b", "strict", "status"),
    [(a_run(seed=3), True, 0), (a_run(9.0), True, 1), (a_run(9.0), False, 0), (a_run(void=True), False, 1)],
)
def test_the_exit_status_of_compare(
    tmp_path: Path, b: dict[str, Any], strict: bool, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, (a_run(), b), strict=True):
        file.write_text(json.dumps(content))
    assert compare.run(Namespace(a=files[0], b=files[1], least=5.0, strict=strict)) == status
    assert "p99_ms" in capsys.readouterr().out


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert (
        compare.run(Namespace(a=tmp_path / "a.json", b=tmp_path / "none.json", least=5.0, strict=False))
        == report.FAILED
    )
    assert len(capsys.readouterr().out.splitlines()) == 1


# ---- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"p99_ms": 25.0, "highest_rate": 20_000.0}, ["ok", "ok"]),
        ({"p99_ms": 25.1, "highest_rate": 19_999.0}, ["OVER", "OVER"]),
        ({"p99_ms": None}, ["OVER", "OVER"]),  # never came; not there at all
        ({"p99_ms": 1.0, "highest_rate": 99_999.0, "void": True}, ["VOID", "VOID"]),
    ],
)
def test_a_figure_is_held_to_its_bound(figures: dict[str, Any], expected: list[str]) -> None:
    one = Run("x", "send", most={"p99_ms": 25}, least={"highest_rate": 20_000})
    assert [line.word for line in budget.judge(one, figures, quick=False)] == expected


@pytest.mark.parametrize(("b", "expected"), [(100.0, "ok"), (130.0, "OVER"), (0.0, "OVER"), (None, "OVER")])
def test_a_ratio_is_of_two_runs(b: float | None, expected: str) -> None:
    ratio = Ratio("1,000 against 200", of="x.rate", to="y.rate", least=0.85)
    line = budget.judge_ratio(ratio, {"x": {"rate": 90.0}, "y": {"rate": b}})
    assert line is not None
    assert line.word == expected
    assert budget.judge_ratio(ratio, {"x": {"rate": 90.0}}) is None


@pytest.mark.parametrize(("b", "expected"), [(80.0, "ok"), (72.0, "ok"), (71.0, "OVER"), (None, "OVER")])
def test_a_ratio_may_be_held_to_the_most_it_is_to_be(b: float | None, expected: str) -> None:
    ratio = Ratio("8 nodes against 2", of="x.cpu", to="y.cpu", most=1.25)
    line = budget.judge_ratio(ratio, {"x": {"cpu": 90.0}, "y": {"cpu": b}})
    assert line is not None
    assert (line.word, line.bound) == (expected, "<= 1.25")


def test_quick_may_have_bounds_of_its_own() -> None:
    one = Run("x", "send --seconds 60", quick="send --seconds 5", most={"a": 1, "b": 1}, quick_most={"b": 5})
    assert one.bounds(quick=False)[0] == {"a": 1, "b": 1}
    assert one.bounds(quick=True)[0] == {"a": 1, "b": 5}
    assert (one.command(True), one.command(False)) == (["send", "--seconds", "5"], ["send", "--seconds", "60"])


def test_the_budgets_file_is_one_that_the_command_line_takes() -> None:
    """Every run of the file parses, quick and not, and names a scenario."""
    runs, ratios = budget.load(budget.BUDGETS)
    names = {one.name for one in runs}
    assert len(names) == len(runs)
    for one in runs:
        for quick in (False, True):
            options = command_line.parser().parse_args(one.command(quick))
            assert options.scenario == one.command(quick)[0]
    assert {part.partition(".")[0] for ratio in ratios for part in (ratio.of, ratio.to)} <= names


async def test_what_lies_in_a_folder_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "b.toml"
    file.write_text('[[run]]\nname = "x"\nargs = "send"\nmost = { p99_ms = 5 }\n[[run]]\nname = "y"\nargs = "idle"\n')
    options = Namespace(budgets=file, only="x", out=tmp_path, quick=False, read=True, add="")
    assert await budget.run(options) == report.OVER
    assert "no figures" in capsys.readouterr().out
    (tmp_path / "x.json").write_text(json.dumps({"p99_ms": 4.0, "void": False}))
    assert await budget.run(options) == report.WITHIN
    (tmp_path / "x.json").write_text(json.dumps({"p99_ms": 6.0, "void": False}))
    assert await budget.run(options) == report.OVER
    options.only = "z"
    assert await budget.run(options) == report.FAILED


def test_the_table_is_in_columns() -> None:
    text = budget.table(
        [Line("send", "p99_ms", "<= 25", "3.1", "ok"), Line("a-longer-name", "lost", "<= 0", "1", "OVER")]
    )
    assert len({line.index("<=") + len(re.findall(r"<= \d+", line)[0]) for line in text.splitlines()[1:]}) == 1


def test_the_comparisons_ratio_is_of_medians_over_repetitions() -> None:
    def window(peer: str, rep: int, rate: float, ok: bool, conns: int = 200) -> dict[str, Any]:
        return {
            "peer": peer,
            "conns": conns,
            "rep": rep,
            "rate": rate,
            "ok": ok,
            "server_ms": 0.03,
            "pg_ms": 0.02,
            "lag": {"p99": 1.5},
        }

    windows = [
        window("chatd", rep, rate, rate <= 20_000 + rep) for rep in range(3) for rate in (16_000, 20_000, 24_000)
    ]
    windows += [window("ws-batch", 0, rate, rate < 28_000) for rate in (16_000, 25_000, 28_000)]
    windows += [
        window(peer, 0, rate, rate < 20_000, 1_000) for peer in ("chatd", "ws-batch") for rate in (16_000, 24_000)
    ]
    figures = peers.figures_of({"windows": windows}, ["chatd", "ws-batch"], [200, 1_000])
    assert (
        figures["chatd_highest_rate_at_1000"],
        figures["chatd_1000_to_200"],
        figures["chatd_to_ws_batch_at_1000"],
    ) == (16_000, 0.8, 1.0)
    assert (figures["chatd_highest_rate"], figures["ws-batch_highest_rate"], figures["chatd_to_ws_batch"]) == (
        20_000,
        25_000,
        0.8,
    )
    assert figures["chatd_server_cpu_us_per_msg"] == 30.0


# ---- the page ------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action", "onload")]
        self.loads += [tag] * (tag in ("script", "link", "img", "iframe", "object"))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(figures: dict[str, Any]) -> Reader:
    reader = Reader()
    reader.feed(page.render(figures))
    return reader


def test_the_page_loads_nothing_and_tells_everything() -> None:
    reader = read(a_run())
    assert reader.loads == []
    assert "Within budget" in reader.text
    assert "Xeon <1>" in reader.text  # escaped, or a parser would have taken it for a tag
    assert "url(" not in page.render(a_run())
    for name in ("p99_ms", "delivery", "pss", "Latency by percentile"):
        assert name in reader.text


def test_the_pages_verdict_is_the_runs() -> None:
    assert "Over budget" in read(a_run(over=["p99_ms 3 > 1"])).text
    assert "Void" in read(a_run(over=["p99_ms 3 > 1"], void=True)).text


def test_plots_are_well_formed_and_within_their_frame() -> None:
    lines = {"a": [[0, 0.2], [50, 1.0], [99.9, 3_000.0], [100, 4_000.0]], "b & c": [[0, 1.0], [50, 1.0], [100, 1.0]]}
    flat, zero = {"flat": [[1, 5.0], [2, 5.0]]}, {"zero": [[0, 0], [9, 0]]}
    for text in (page.percentiles(lines), page.plot(flat, "s", ""), page.plot(zero, "s", "", zero=False)):
        svg = ElementTree.fromstring(re.sub(r"=([\w.-]+)(?=[ />])", r'="\1"', text))
        for circle in svg.iter("circle"):
            assert 0 <= float(circle.get("cx", "-1")) <= page.WIDTH
            assert 0 <= float(circle.get("cy", "-1")) <= page.HEIGHT
    assert "p99.9: 3000 ms" in page.percentiles(lines)


def test_a_page_without_anything_to_plot_is_a_page() -> None:
    assert "All figures" in read(a_run(windows=[], curves={}, series={})).text
