from __future__ import annotations

import dataclasses
import io
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.findings import pareto
from orchestrator.search_pictures import COLOURS, FIGURES, PIXELS, draw, rendered
from orchestrator.search_report import SearchResults
from search_spaces.options import Sensitivity, Tuning
from tests.orchestrator.searched import (
    CENTER,
    around,
    cell,
    observed,
    results,
    sensitivity,
    tuning,
)


def panels(figure: Any) -> list[Any]:
    """Return the axes that hold data, colour bars left out, in rows."""
    found = [axis for part in (figure, *figure.subfigs) for axis in part.axes]
    return [a for a in dict.fromkeys(found) if a.get_label() != "<colorbar>"]


def marks(axis: Any, gid: str) -> list[Any]:
    return [artist for artist in axis.get_children() if artist.get_gid() == gid]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


def legends(figure: Any) -> list[str]:
    found = [legend for part in (figure, *figure.subfigs) for legend in part.legends]
    return [text.get_text() for legend in found for text in legend.get_texts()]


def made(name: str, study: SearchResults) -> Any:
    figure = FIGURES[name](study)
    assert figure is not None
    return figure


def traded() -> SearchResults:
    """Return a tuning study of mAP against bits: points 0, 2 and 3 are on the front."""
    values = {0: (0.60, 8.0), 1: (0.55, 16.0), 2: (0.70, 16.0), 3: (0.75, 64.0), 4: (0.74, 64.0)}
    return dataclasses.replace(
        tuning(5),
        options=Tuning(objectives=["map", "bits"], sampler="nsga2", trials=5),
        pareto={0: pareto(values, ["maximize", "minimize"])},
    )


def factorial(seeds: tuple[int, ...] = (0, 1, 2)) -> SearchResults:
    space = {"gamma": [1, 10, 100], "tau": [0.125, 0.25]}
    own = cell(space=space)
    points = [{"gamma": g, "tau": t} for g, t in itertools.product(*space.values())]
    options = Sensitivity(design="factorial")
    return results([own], observed(own, points, seeds), options, center=points[0])


# ---- sensitivity ---------------------------------------------------------------------------


def test_each_parameter_has_a_panel_with_its_values_as_ticks() -> None:
    axes = panels(made("sensitivity", sensitivity()))
    assert [axis.get_xlabel() for axis in axes] == ["gamma", "margin", "tau"]
    assert ticks(axes[0]) == ["0", "0.1", "1", "10", "100", "1000"]
    assert ticks(axes[1]) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert ticks(axes[2]) == ["1/16", "1/8", "1/4", "1/2", "1"]


def test_a_curve_goes_through_the_means_over_seeds() -> None:
    axis = panels(made("sensitivity", sensitivity()))[1]
    (line,) = marks(axis, "mean")
    # 0.8 - 0.1 margin, the rest at its best
    assert line.get_xdata() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert line.get_ydata() == pytest.approx([0.80, 0.79, 0.78, 0.77, 0.76, 0.75])


def test_the_band_is_student_s_interval_of_the_mean() -> None:
    axis = panels(made("sensitivity", sensitivity()))[1]
    (band,) = marks(axis, "band")
    heights = band.get_paths()[0].vertices[:, 1]
    # t at 2 degrees of freedom is 4.3027, the sd of -0.01, 0, 0.01 is 0.01
    assert heights.max() == pytest.approx(0.80 + 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    assert heights.min() == pytest.approx(0.75 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)


def test_every_seed_is_a_dot_and_one_seed_has_no_band() -> None:
    (dots,) = marks(panels(made("sensitivity", sensitivity()))[0], "seeds")
    assert len(dots.get_xdata()) == 6 * 3
    figure = made("sensitivity", sensitivity((7,)))
    for axis in panels(figure):
        assert not marks(axis, "seeds") and not marks(axis, "band") and not marks(axis, "flat")
    assert "one seed" not in legends(figure)


def test_zero_lies_beyond_a_break_over_which_the_line_is_another() -> None:
    axes = panels(made("sensitivity", sensitivity()))
    (gamma,) = marks(axes[0], "mean")
    assert len(gamma.get_xdata()) == 5
    (over,) = marks(axes[0], "break")
    assert over.get_xdata() == pytest.approx([-2, -1])
    assert len(marks(axes[0], "axis break")) == 1
    assert not marks(axes[1], "axis break") and not marks(axes[2], "axis break")


def test_best_default_and_test_are_marked_where_they_are() -> None:
    figure = made("sensitivity", sensitivity(chosen={**CENTER, "margin": 0.0}))
    gamma, margin, tau = panels(figure)
    for axis, place, height in ((gamma, 1.0, 0.78), (margin, 0.0, 0.80), (tau, -0.60206, 0.78)):
        (best,) = marks(axis, "best")
        assert (*best.get_xdata(), *best.get_ydata()) == pytest.approx((place, height))
    (center,) = marks(margin, "center")
    assert center.get_xdata() == pytest.approx([0.2, 0.2])
    (test,) = marks(margin, "test")
    assert (*test.get_xdata(), *test.get_ydata()) == pytest.approx((0.0, 0.78))
    assert not marks(gamma, "test")
    assert {"best", "the study's own value", "test, scored once at the end"} <= set(
        legends(figure)
    )


def test_the_shade_reaches_halfway_to_what_can_be_told_from_the_best() -> None:
    study = sensitivity()
    curves = list(study.findings[0].curves)
    curves[1] = dataclasses.replace(curves[1], flat=(0.0, 0.1, 0.4))
    found = dataclasses.replace(study.findings[0], curves=tuple(curves))
    axis = panels(made("sensitivity", dataclasses.replace(study, findings=(found,))))[1]
    spans = [(span.get_x(), span.get_x() + span.get_width()) for span in marks(axis, "flat")]
    assert spans == [pytest.approx((-0.03, 0.15)), pytest.approx((0.35, 0.45))]


def test_a_value_that_failed_is_a_cross_at_the_foot_and_no_mean() -> None:
    figure = made("sensitivity", sensitivity(failed=(1,)))
    axis = panels(figure)[0]
    (cross,) = marks(axis, "unknown")
    assert cross.get_xdata() == pytest.approx([-2])  # gamma 0
    (points,) = marks(axis, "points")
    assert len(points.get_xdata()) == 5
    assert "failed, or not measured yet" in legends(figure)


def test_several_cells_are_several_lines_in_the_same_panels() -> None:
    cells = [cell(i, dataset=name) for i, name in enumerate(["digits", "cifar10", "$x$", "ü"])]
    seen = [one for own in cells for one in observed(own, around())]
    figure = made("sensitivity", results(cells, seen))
    axes = panels(figure)
    assert len(axes) == 3
    lines = marks(axes[1], "mean")
    assert [line.get_color() for line in lines] == list(COLOURS[:4])
    assert len({line.get_linestyle() for line in lines}) == 4
    assert legends(figure)[:4] == ["digits", "cifar10", "$x$", "ü"]


def test_more_cells_than_colours_are_drawn_in_rows_of_their_own() -> None:
    cells = [cell(i, bits=8 * (i + 1)) for i in range(8)]
    seen = [one for own in cells for one in observed(own, around(), (0,))]
    figure = made("sensitivity", results(cells, seen))
    axes = panels(figure)
    assert [len(marks(axis, "mean")) for axis in axes] == [6, 6, 6, 2, 2, 2]
    shown = [text for text in legends(figure) if text.endswith("bit")]
    assert shown == [f"{8 * (i + 1)} bit" for i in range(8)]


def test_choices_without_an_order_are_not_joined() -> None:
    own = cell(space={"instance": ["binary_sg", "contr_sg"], "on": [True, False]})
    center = {"instance": "binary_sg", "on": True}
    points = [center, {**center, "instance": "contr_sg"}, {**center, "on": False}]
    axes = panels(made("sensitivity", results([own], observed(own, points), center=center)))
    assert [ticks(axis) for axis in axes] == [["binary_sg", "contr_sg"], ["true", "false"]]
    assert not any(marks(axis, "mean") for axis in axes)
    assert all(len(marks(axis, "points")) == 1 for axis in axes)


def test_a_wide_interval_does_not_flatten_the_curve() -> None:
    study = sensitivity((0, 1), spread=0.02)  # t at one degree of freedom is 12.7
    axis = panels(made("sensitivity", study))[0]
    low, high = axis.get_ylim()
    values = [one.validation for one in study.observations if one.validation is not None]
    span = max(values) - min(values)
    assert low < min(values) and high > max(values)
    assert high - low < 2.5 * span


# ---- the others ----------------------------------------------------------------------------


def test_a_factorial_is_a_field_of_means_in_their_places() -> None:
    (axis,) = panels(made("contour", factorial()))
    (mesh,) = marks(axis, "means")
    written = sorted((t.get_position(), t.get_text()) for t in marks(axis, "mean"))
    assert mesh.get_array().count() == 6
    assert len(written) == 6
    # The larger effect is across; gamma 10 and tau 0.25 are best: 0.8 - 0.1 * 0.2
    assert {axis.get_xlabel(), axis.get_ylabel()} == {"gamma", "tau"}
    (best,) = marks(axis, "best")
    places = {"gamma": 1.0, "tau": 0.25}
    assert best.get_xdata()[0] == pytest.approx(places[axis.get_xlabel()])
    texts = {text for _, text in written}
    assert f"{0.78:.3f}" in texts and f"{0.76 - 0.03:.3f}" in texts


def test_scattered_points_are_drawn_where_they_were_measured() -> None:
    own = cell(space={
        "gamma": {"type": "log_float", "low": 0.1, "high": 1000.0},
        "margin": {"type": "float", "low": 0.0, "high": 0.5},
    })  # fmt: skip
    places = [(i / 15, (7 * i % 16) / 15) for i in range(16)]
    points = [own.space.at(place) for place in places]
    options = Sensitivity(design="sobol", samples=16)
    center = {"gamma": 10, "margin": 0.2}
    (axis,) = panels(
        made("contour", results([own], observed(own, points), options, center=center))
    )
    (dots,) = marks(axis, "points")
    turned = axis.get_xlabel() == "margin"
    wanted = sorted((4 * x - 1, y / 2) for x, y in places)
    drawn = sorted(tuple(o)[::-1] if turned else tuple(o) for o in dots.get_offsets().tolist())
    assert np.allclose(drawn, wanted, atol=1e-6)


def test_importances_of_a_factorial_have_two_bars_each_in_their_order() -> None:
    study = factorial()
    (axis,) = panels(made("importances", study))
    importances = study.findings[0].importances
    assert importances is not None
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [effect.name for effect in importances.effects]
    widths = [bar.get_width() for bar in axis.patches]
    shares = [e.first for e in importances.effects] + [e.total for e in importances.effects]
    assert widths == pytest.approx([share.value for share in shares if share is not None])
    assert axis.get_xlabel() == "part of the variance"


def test_importances_of_single_curves_are_their_sd_and_no_parts_of_a_whole() -> None:
    (axis,) = panels(made("importances", sensitivity()))
    bars = dict(zip((t.get_text() for t in axis.get_yticklabels()), axis.patches, strict=True))
    # margin: 0 ... 0.05 in six even steps of 0.01: sd 0.01 * sqrt(35 / 12)
    assert bars["margin"].get_width() == pytest.approx(0.01 * (35 / 12) ** 0.5)
    assert axis.get_xlabel() == "sd of the curve (mAP)"


def test_parallel_coordinates_have_a_line_a_complete_point_and_dashes_for_the_stopped() -> None:
    figure = made("parallel", tuning(30, pruned=(12, 20), failed=(25,)))
    (axis,) = panels(figure)
    assert len(marks(axis, "done")) == 27
    assert len(marks(axis, "pruned")) == 2
    assert len(marks(axis, "recommended")) == 1
    assert ticks(axis) == ["gamma", "margin", "tau", "instance", "mAP"]
    assert "stopped early" in legends(figure)


def test_parallel_coordinates_label_values_where_lines_pass() -> None:
    (axis,) = panels(made("parallel", sensitivity()))
    lies = {
        t.get_text(): t.get_position()[1] for t in marks(axis, "tick") if t.get_position()[0] < 1
    }
    assert lies == pytest.approx({"0": 0, "0.1": 0.2, "1": 0.4, "10": 0.6, "100": 0.8, "1000": 1})
    (best,) = marks(axis, "recommended")
    assert list(best.get_ydata()) == pytest.approx([0.6, 0.0, 0.5, 1.0])  # 10, 0, 1/4, the best


def test_the_course_of_a_search_marks_where_points_came_from() -> None:
    figure = made("history", tuning(30, pruned=(12, 20), failed=(25,)))
    (axis,) = panels(figure)
    counts = {
        kind: len(marks(axis, kind)[0].get_xdata())
        for kind in ("given before the search", "drawn before the model", "proposed",
                     "stopped early", "failed")
    }  # fmt: skip
    assert list(counts.values()) == [1, 9, 17, 2, 1]
    assert list(marks(axis, "stopped early")[0].get_xdata()) == [12, 20]
    assert list(marks(axis, "failed")[0].get_xdata()) == [25]
    assert len(legends(figure)) == 6


def test_the_best_so_far_never_falls_and_ends_at_the_best() -> None:
    study = tuning(9)
    (axis,) = panels(made("history", study))
    (line,) = marks(axis, "best so far")
    scores = [one.validation for one in study.observations]
    assert list(line.get_ydata()) == pytest.approx(list(itertools.accumulate(scores, max)))


def test_a_sensitivity_study_has_no_course() -> None:
    assert FIGURES["history"](sensitivity()) is None


def test_stopped_trials_end_at_the_epoch_at_which_they_were_stopped() -> None:
    (axis,) = panels(made("epochs", tuning(8, pruned=(4,))))
    (stopped,) = marks(axis, "pruned")
    assert list(stopped.get_xdata()) == [1, 2]
    assert all(list(line.get_xdata()) == [1, 2, 3, 4, 5] for line in marks(axis, "done"))
    assert len(marks(axis, "done")) + len(marks(axis, "recommended")) == 7


def test_trials_that_validated_once_have_no_picture_by_epoch() -> None:
    assert FIGURES["epochs"](sensitivity((0,), epochs=1)) is None


def test_the_front_is_joined_and_other_points_are_beside_it() -> None:
    (axis,) = panels(made("pareto", traded()))
    (front,) = marks(axis, "front")
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [
        (8.0, 0.60), (16.0, 0.70), (64.0, 0.75),
    ]  # fmt: skip
    (other,) = marks(axis, "other")
    assert sorted(other.get_xdata()) == [16.0, 64.0]
    assert len(marks(axis, "front line")) == 1
    assert axis.get_xlabel() == "code length (bits)"


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("bits", "code length (bits)"),
        ("gallery_bytes", "gallery (bytes)"),
        ("query_flops", "query network (FLOPs an image)"),
        ("query_parameters", "query network (parameters)"),
        ("query_latency", "query network (ms an image)"),
    ],
)
def test_the_axis_of_each_objective_has_its_unit(objective: Any, name: str) -> None:
    options = Tuning(objectives=["map", objective], sampler="nsga2", trials=5)
    (axis,) = panels(made("pareto", dataclasses.replace(traded(), options=options)))
    assert axis.get_xlabel() == name


def test_one_objective_has_no_front() -> None:
    assert FIGURES["pareto"](tuning(5)) is None


# ---- files ---------------------------------------------------------------------------------


AWKWARD = ["$unclosed", "_hidden", "x" * 200, "Straße → 中", "<b>&amp;"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Iterator[tuple[Path, list[Path]]]:
    folder = tmp_path_factory.mktemp("drawn") / "deep"
    cells = [cell(i, dataset=name) for i, name in enumerate(AWKWARD)]
    seen = [one for own in cells for one in observed(own, around(), (0, 1))]
    yield folder, draw(results(cells, seen), folder)


def test_what_applies_is_written_as_png_and_svg_and_the_page_last(drawn) -> None:
    folder, paths = drawn
    names = [f"{name}.{s}" for name in ("sensitivity", "importances", "parallel", "epochs")
             for s in ("png", "svg")]  # fmt: skip
    assert [path.name for path in paths] == [*names, "index.html"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == PIXELS
                image.verify()


def test_pictures_hold_no_date_and_no_version_of_the_software(drawn) -> None:
    for path in drawn[1]:
        if path.suffix in (".png", ".svg"):
            data = path.read_bytes().lower()
            assert b"software" not in data and b"<dc:date" not in data
            assert not re.search(rb"matplotlib v|20\d\d-\d\d-\d\d", data)


def test_an_svg_refers_to_nothing_outside_of_itself(drawn) -> None:
    for path in drawn[1]:
        if path.suffix == ".svg":
            targets = re.findall(r'href="([^"]*)"', path.read_text())
            assert all(target.startswith(("#", "data:")) for target in targets)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_results_give_the_same_bytes(suffix: str) -> None:
    study = sensitivity((0, 1))
    first, again = (rendered(made("sensitivity", study), suffix, "s") for _ in range(2))
    assert first == again


def test_another_study_in_one_page_has_other_ids() -> None:
    figures = [rendered(made("sensitivity", sensitivity((0,))), "svg", salt) for salt in "ab"]
    ids = [set(re.findall(rb'<clipPath id="([^"]+)"', figure)) for figure in figures]
    assert ids[0] and not ids[0] & ids[1]


def test_a_picture_that_no_longer_applies_is_removed(tmp_path: Path) -> None:
    (tmp_path / "pareto.png").write_bytes(b"old")
    own = cell()
    nothing = results([own], observed(own, around(), missing=range(15)))
    assert [path.name for path in draw(nothing, tmp_path)] == ["index.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_no_text_of_a_picture_leaves_it() -> None:
    figure = made("sensitivity", sensitivity(chosen=CENTER))
    rendered(figure, "png", "s")
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    texts = [t for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip()]
    assert len(texts) > 20
    for text in texts:
        if text.get_visible():
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, text.get_text()


def test_a_picture_is_no_blank_page() -> None:
    data = rendered(made("sensitivity", sensitivity((0,))), "png", "s")
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (0x00, 0x72, 0xB2)).all(axis=-1).sum() > 500


def test_importing_pictures_imports_neither_matplotlib_nor_plotly() -> None:
    code = (
        "import sys, orchestrator.search_pictures, orchestrator.search_pages\n"
        "assert not {'matplotlib', 'plotly', 'scipy', 'optuna'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
