"""Studies in notebooks: tables, figures, networks to use; and the tutorial, executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import orchestrator as ab
from orchestrator.notebook import NotebookStudy
from retrieval.errors import InputError, UnknownNameError
from tests.orchestrator.conftest import BASE
from tests.orchestrator.searched import sensitivity

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> NotebookStudy:
    folder = tmp_path_factory.mktemp("notebook")
    file = folder / "small.yaml"
    train = {**BASE["train"], "epochs": 1}
    file.write_text(yaml.safe_dump({**BASE, "methods": ["csch", "csq"], "train": train}))
    return ab.load(file, home=folder / "home").run(executor="inline", quiet=True)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, orchestrator as ab; assert 'load' in dir(ab); "
        "heavy = {'torch', 'pandas', 'numpy', 'ray', 'mlflow', 'matplotlib', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = ab.lod


def test_a_study_is_found_by_file_preset_and_by_the_name_that_it_ran_under(study, tmp_path):
    home = study.session.home
    assert ab.load("small", home=home).results.trials[0].status == "done"
    preset = ab.load("quickstart", home=str(tmp_path), overrides=["bits=[16]"])
    assert repr(preset) == "<study quickstart: 0 of 8 trials done>"
    assert preset.session.home == tmp_path


@pytest.mark.parametrize(("name", "said"), [("quickstrat", "quickstart"), ("no.yaml", "no such")])
def test_what_cannot_be_found_is_said_in_one_message(name, said, tmp_path):
    with pytest.raises(InputError, match=said):
        ab.load(name, home=tmp_path)


def test_a_home_that_can_be_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder"):
        ab.load("quickstart", home=tmp_path / "file")


def test_run_says_what_is_under_way_unless_it_shall_be_quiet(study, capsys):
    study.run(executor="inline")  # all is done
    with pytest.raises(UnknownNameError, match="inline"):
        study.run(executor="inlin")


def test_table_has_the_means_of_the_store(study):
    table = study.table()
    store = study.session.store
    for trial in study.session.plan.trials:
        expected = store.manifest(trial.id).result["map"]
        column = (trial.dataset, trial.protocol, "all", 16)
        assert table.loc[(trial.pair, trial.method), column] == expected
    assert table.shape == (2, 1)
    with pytest.raises(UnknownNameError, match="map"):
        study.table("mpa")


def test_a_search_that_scored_nothing_has_no_table_and_says_so(tmp_path):
    search = ab.load("csch_sensitivity_digits", home=tmp_path)
    with pytest.raises(InputError, match="has chosen nothing yet"):
        search.table()


def test_trials_and_curves_are_frames_with_a_row_for_each(study):
    trials = study.trials()
    assert list(trials["method"]) == ["csch", "csq"]
    assert (trials["seconds/query"] > 0).all() and (trials["status"] == "done").all()
    curves = study.curves()
    assert list(curves["epoch"]) == [1, 1]
    assert list(curves["validation/map"]) == list(trials["map_validation"])


def test_compare_names_the_best_as_reference(study):
    table = study.compare()
    best = study.table().iloc[:, 0].idxmax()[1]
    assert set(table["reference"]) == {best}
    assert table.set_index("method").loc[best, "p_holm"] != 0
    other = study.compare(to="csq")
    assert set(other["reference"]) == {"csq"}
    with pytest.raises(UnknownNameError):
        study.compare(to="scq")


def lines_of(figure):
    return [line for axes in figure.axes for line in axes.get_lines()]


def test_curves_are_those_of_the_evaluations(study):
    by_name = {one.trial.method: one for one in study.results.trials}
    drawn = lines_of(study.plot_pr())
    assert [line.get_label() for line in drawn] == ["csch", "csq"]
    for line in drawn:
        curve = by_name[line.get_label()].evaluation["pr_curve"]
        assert list(line.get_xdata()) == [point["recall"] for point in curve]
        assert list(line.get_ydata()) == [point["precision"] for point in curve]
    for line in lines_of(study.plot_precision_at_k()):
        known = by_name[line.get_label()].evaluation["precision_at_k"]
        assert {int(k): v for k, v in known.items()} == dict(
            zip(map(int, line.get_xdata()), line.get_ydata(), strict=True)
        )
    for line in lines_of(study.plot_map_by_epoch()):
        assert list(line.get_xdata()) == [1.0]
        assert list(line.get_ydata()) == [by_name[line.get_label()].validation]


@pytest.mark.parametrize(
    ("x", "cost"),
    [
        ("flops", lambda one: one.size("query", "flops")),
        ("parameters", lambda one: one.size("query", "parameters")),
        ("bytes", lambda one: 2),
    ],
)
def test_a_trade_off_has_a_point_for_each_cell(study, x, cost):
    drawn = lines_of(study.plot_tradeoff(x))
    wanted = [(cost(one), one.scores["map"]) for one in study.results.trials]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn] == wanted


def test_latency_is_drawn_where_it_is_measured(study):
    with pytest.raises(InputError, match="asymbench efficiency"):
        study.plot_tradeoff("latency")
    with pytest.raises(UnknownNameError, match="flops"):
        study.plot_tradeoff("flosp")
    query = {"backbone": "test_efficientnet", "size": 32, "head": "fc_bn",
             "latency": {"1": {"median": 0.002}}}  # fmt: skip
    folder = study.session.home / "efficiency"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps({"query": query}))
    drawn = lines_of(study.plot_tradeoff("latency"))
    assert {line.get_xdata()[0] for line in drawn} == {2.0}


def test_figures_are_shown_without_pyplot_and_the_same_twice(study):
    before = "matplotlib.pyplot" in sys.modules
    figure = study.plot_pr()
    assert type(figure).__mro__[1].__module__ == "matplotlib.figure"
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure._repr_png_() == study.plot_pr()._repr_png_()
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_sensitivity_curves_are_of_searches(study, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="benchmark"):
        study.plot_sensitivity()
    searched = ab.load("csch_sensitivity_digits", home=tmp_path)
    with pytest.raises(InputError, match="no curve"):
        searched.plot_sensitivity()
    monkeypatch.setattr("orchestrator.search_report.search_results", lambda session: sensitivity())
    figure = searched.plot_sensitivity()
    assert len(figure.axes) >= 3  # gamma, margin, tau
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_page_of_a_cell_escapes_names_and_has_the_best_in_bold(study, tmp_path):
    html = study._repr_html_()
    assert html.count("<b>") == 1 and "<table>" in html
    text = yaml.safe_dump({**BASE, "datasets": [{"name": "digits", "label": "<script>x"}]})
    (tmp_path / "s.yaml").write_text(text)
    other = ab.load(tmp_path / "s.yaml", home=tmp_path)._repr_html_()
    assert "<script>" not in other and "&lt;script&gt;x" in other


def test_a_trial_encodes_as_it_was_scored_and_searches(study):
    trial = study.trial("csq")
    assert trial.label == "csq · effnet-resnet · 16 bit · digits · s0"
    assert trial.scores["map"] == study.table().iloc[1, 0]
    scored = trial.trained.codes("query")
    images = trial.images("query", rows=[0, 7])
    np.testing.assert_array_equal(trial.encode(images), scored[[0, 7]])
    gallery = trial.images("gallery", rows=[3])
    np.testing.assert_array_equal(
        trial.encode(gallery, side="gallery"), trial.trained.codes("gallery")[[3]]
    )
    found = trial.search(images, k=4)
    assert list(found["query"]) == [0] * 4 + [1] * 4
    assert list(found["rank"]) == [1, 2, 3, 4] * 2
    codes = np.unpackbits(trial.trained.codes("gallery"), axis=1)
    for number, row in enumerate((0, 7)):
        distances = (codes != np.unpackbits(scored[row])).sum(axis=1)
        assert list(found[found["query"] == number]["distance"]) == sorted(distances)[:4]


@pytest.mark.parametrize(
    "call",
    [
        lambda study: study.trial("nothing like it"),
        lambda study: study.trial("effnet"),  # both
        lambda study: study.trial("csq").images("quer"),
        lambda study: study.trial("csq").images("query", rows=[300]),
        lambda study: study.trial("csq").encode([], side="left"),
        lambda study: study.trial("csq").encode(np.zeros((8, 8, 3), np.uint8)),  # one, not a list
        lambda study: study.trial("csq").encode(np.zeros((1, 8, 8, 3), np.float32)),
        lambda study: study.trial("csq").encode([np.zeros((8, 8), np.uint8)]),
        lambda study: study.trial("csq").encode("photo.jpg"),
        lambda study: study.trial("csq").search(study.trial("csq").images(), k=0),
    ],
)
def test_what_a_trial_cannot_do_is_refused(study, call):
    with pytest.raises(InputError):
        call(study)


def test_a_trial_that_is_not_trained_cannot_encode(tmp_path):
    trial = ab.load("quickstart", home=tmp_path).trial("csq 16 bit effnet")
    assert trial.scores == {} and "missing" in repr(trial)
    with pytest.raises(InputError, match="not finished"):
        trial.encode([np.zeros((8, 8, 3), np.uint8)])


# ---- the tutorial ---------------------------------------------------------------------------


def shapes(cell) -> list[tuple[str, list[str]]]:
    """Return the kinds of a cell's outputs, whatever their pixels and digits."""
    return [(out.output_type, sorted(out.get("data", {}))) for out in cell.get("outputs", [])]


def test_the_tutorial_holds_its_outputs_and_nothing_of_a_machine():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert all(cell.outputs for cell in code)
    assert not any(out.get("name") == "stderr" for cell in code for out in cell.outputs)
    text = TUTORIAL.read_text()
    assert not any(path in text for path in ("/home/", "/tmp/", "/root/", "/Users/", "/work/"))


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(TUTORIAL.parents[1]))
    committed = nbformat.read(TUTORIAL, as_version=4)
    executed = nbformat.from_dict(committed)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        executed, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # a cell that fails raises
    kept = nbformat.read(TUTORIAL, as_version=4)
    assert [shapes(cell) for cell in executed.cells] == [shapes(cell) for cell in kept.cells]
