import math

import pytest

from lorgnette.report.html.charts import (
    MAX_CSV_ROWS,
    MAX_POINTS,
    Axis,
    Curve,
    build_charts,
    build_overlay,
    format_number,
    tabulate_charts,
)


def test_eval_curve_joins_the_training_curve() -> None:
    curves = [
        Curve("loss", [(1, 4.0), (2, 2.0)]),
        Curve("lr", [(1, 1e-4)]),
        Curve("eval_loss", [(2, 3.0)]),
        Curve("eval x", [(1, 1)]),
    ]
    charts = build_charts(curves)
    assert [(chart.name, [line.name for line in chart.lines]) for chart in charts] == [
        ("loss", ["training loss", "eval_loss"]),
        ("lr", ["lr"]),
        ("eval x", ["eval x"]),
    ]
    assert charts[0].description == "training loss 4 at step 1, 2 at step 2; eval_loss 3 at step 2"


def test_an_empty_curve_keeps_its_color() -> None:
    curves = [Curve("base", []), Curve("a", [(1, 2.0), (2, 1.0)]), Curve("b", [(1, 3.0), (2, 2.0)])]
    [chart] = build_overlay("eval loss", curves)
    assert [(line.name, line.color) for line in chart.lines] == [("a", 2), ("b", 3)]
    assert [line["name"] for line in chart.script_data["lines"]] == ["a", "b"]
    assert build_overlay("lr", [Curve("base", [])]) == []


def test_points_match_the_ticks() -> None:
    (chart,) = build_charts([Curve("loss", [(0.0, 4.0), (10.0, 0.0)])])
    assert [(tick.percent, tick.text) for tick in chart.y_ticks] == [
        (0, "0"),
        (25, "1"),
        (50, "2"),
        (75, "3"),
        (100, "4"),
    ]
    assert [(tick.percent, tick.text) for tick in chart.x_ticks][:2] == [(0, "0"), (20, "2")]
    assert chart.lines[0].path == "M0.0 0.0L1000.0 1000.0"
    assert chart.lines[0].dots == "M0.0 0.0h0M1000.0 1000.0h0"


@pytest.mark.parametrize(
    "values", [[5.0], [0.0, 0.0], [-3.0, -1.0], [1e-5, 1e-4], [1e12, 3e12], [0.5, 0.5001], [1e-30, 2e-30], [2.5, 1e7]]
)
def test_any_range_has_round_ticks_around_it(values: list[float]) -> None:
    (chart,) = build_charts([Curve("x", list(enumerate(values)))])
    assert chart.y_range[0] <= min(values) <= max(values) <= chart.y_range[1]
    assert 2 <= len(chart.y_ticks) <= 8
    assert len({tick.text for tick in chart.y_ticks}) == len(chart.y_ticks)
    assert all(0 <= tick.percent <= 100 for tick in [*chart.x_ticks, *chart.y_ticks])


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.002], ["0", "0.0005", "0.0010", "0.0015", "0.0020"]),  # not 5e−4 beside 0.001
        ([0.0, 1e-4], ["0", "2.5e−5", "5e−5", "7.5e−5", "1e−4"]),
        ([2.0, 2.5], ["2.0", "2.2", "2.4", "2.6"]),
    ],
)
def test_the_ticks_of_an_axis_have_one_form(values: list[float], texts: list[str]) -> None:
    (chart,) = build_charts([Curve("x", list(enumerate(values)))])
    assert [tick.text for tick in chart.y_ticks] == texts


def test_the_best_step_is_marked_in_the_chart_that_selects_it() -> None:
    curves = [Curve("loss", [(1, 4.0), (20, 2.0)]), Curve("eval loss", [(10, 3.0)]), Curve("lr", [(1, 1.0), (20, 2.0)])]
    loss, rate = build_charts(curves, best=("eval loss", 10))
    assert loss.mark is not None
    assert (loss.mark.text, round(loss.mark.percent)) == ("best: step 10", 47)
    assert "best: step 10" in loss.description
    assert rate.mark is None
    assert build_charts(curves, best=("eval loss", 99))[0].mark is None  # the log ends before it


def test_all_curves_are_one_table() -> None:
    curves = [Curve("loss", [(1, 4.0), (2, 2.0)]), Curve("lr", [(1, 1e-4)]), Curve("eval loss", [(2, 3.0)])]
    table = tabulate_charts(build_charts(curves))
    assert table.header == ["step", "training loss", "eval loss", "lr"]
    assert table.rows == [["1", "4", "", "0.0001"], ["2", "2", "3", ""]]
    assert table.csv == "step,training loss,eval loss,lr\n1,4,,0.0001\n2,2,3,\n"
    charts = [chart for name in ("loss", "eval loss") for chart in build_overlay(name, [Curve("a,b", [(1, 2.0)])])]
    assert tabulate_charts(charts).csv.startswith('step,"loss: a,b","eval loss: a,b"\n')
    long = build_charts([Curve("lr", [(float(step), 1.0) for step in range(50_000)])])
    assert len(tabulate_charts(long).rows) <= MAX_CSV_ROWS
    assert tabulate_charts([]).rows == []


def test_non_finite_points_are_counted_not_drawn() -> None:
    (chart,) = build_charts(
        [Curve("loss", [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)]), Curve("lr", [(1, math.nan)])]
    )
    assert "2 not finite and not drawn" in chart.description
    assert "nan" not in chart.lines[0].path
    assert build_charts([Curve("empty", [])]) == []


def test_a_thinned_curve_keeps_its_spike() -> None:
    points = [(float(step), 1.0) for step in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    (chart,) = build_charts([Curve("loss", points)])
    assert len(chart.lines[0].points) <= MAX_POINTS + 2
    assert (31_234.0, 9.0) in chart.lines[0].points
    assert chart.lines[0].points[-1] == points[-1]


def test_only_a_long_loss_is_smoothed() -> None:
    points = [(float(step), 1.0 + step % 2) for step in range(100)]
    loss, rate = build_charts([Curve("loss", points), Curve("lr", points)])
    assert loss.lines[0].smooth
    assert not rate.lines[0].smooth
    assert not build_charts([Curve("loss", points[:20])])[0].lines[0].smooth


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.9, "3.9"),
        (0.12345, "0.1235"),
        (62, "62"),
        (1240, "1\N{NARROW NO-BREAK SPACE}240"),
        (123456.7, "123\N{NARROW NO-BREAK SPACE}500"),
        (0.00197, "0.00197"),
        (1e-4, "1e−4"),
        (2.5e-7, "2.5e−7"),
        (1.5e6, "1.5e6"),
        (-1.5, "−1.5"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_band_goes_along_the_upper_bounds_and_back_along_the_lower_ones() -> None:
    curve = Curve("share", [(0, 50.0), (10, 100.0)], band=[(25.0, 75.0), (50.0, 100.0)])
    axis = Axis("answer", "answer")
    [chart] = build_overlay("share", [curve], axis=axis, y_limits=(0, 100))
    assert chart.lines[0].area == "M0.0 250.0L1000.0 0.0L1000.0 500.0L0.0 750.0"
    assert chart.y_range == (0.0, 100.0)
    assert chart.script_data["word"] == "answer"
    assert chart.description == "share 50 at answer 0, 100 at answer 10"
    assert tabulate_charts([chart]).header == ["answer", "share"]
    [other] = build_charts([Curve("loss", [(0, 1.0), (1, 2.0)])])
    assert (other.lines[0].area, other.axis.name, tabulate_charts([other]).header[0]) == ("", "optimizer step", "step")
