"""Rows in CSV, JSON and Parquet: the same, typed, and nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from orchestrator.reporting.formats import study_bytes
from orchestrator.reporting.records import to_csv, to_parquet
from orchestrator.reporting.results import gather
from orchestrator.reporting.rows import trial_rows
from orchestrator.search_report import search_bytes, search_rows
from orchestrator.store import open_store
from tests.orchestrator.scored import finish, planned, score
from tests.orchestrator.searched import cell, observed, results, sensitivity


def read(data: bytes):
    return pq.read_table(io.BytesIO(data))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted_in_csv_only(text):
    rows = [{"name": text, "value": -0.5, "of": {"a": text}}]
    (line,) = csv.DictReader(io.StringIO(to_csv(rows), newline=""))
    assert line["name"] == "'" + text.replace("\r", "\n")
    assert line["value"] == "-0.5"
    assert json.loads(line["of"]) == {"a": text}
    assert read(to_parquet(rows, {})).to_pylist()[0]["name"] == text


def test_a_label_of_a_study_is_quoted_too(tmp_path):
    label = '=HYPERLINK("http://x","y")'
    plan = planned(tmp_path, datasets=[{"name": "digits", "label": label}])
    found = gather(plan, open_store(tmp_path))
    (line,) = csv.DictReader(io.StringIO(study_bytes(found, "csv").decode()))
    assert line["dataset"] == f"'{label}"
    assert json.loads(study_bytes(found, "json"))[0]["dataset"] == label


def test_parquet_has_the_rows_of_json_in_typed_columns(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path, methods=["csch", "csq"], bits=[16, 32])
    score(store, plan, lambda t: t.bits / 64 if t.method == "csq" else None)
    found = gather(plan, store)
    table = read(study_bytes(found, "parquet"))
    rows = json.loads(study_bytes(found, "json"))
    assert table.column_names == list(rows[0])
    for one, other in zip(table.to_pylist(), rows, strict=True):
        assert {**one, "params": json.loads(one["params"])} == other
    types = {field.name: str(field.type) for field in table.schema}
    wanted = {"method": "string", "bits": "int64", "seed": "int64", "map": "double",
              "at": "string", "params": "string", "query_parameters": "int64"}  # fmt: skip
    assert {name: types[name] for name in wanted} == wanted


def test_columns_have_the_same_types_before_anything_is_done(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path)
    before = read(study_bytes(gather(plan, store), "parquet")).schema
    finish(store, plan, plan.trials[0].id, {"map": 1})  # a whole number
    after = read(study_bytes(gather(plan, store), "parquet"))
    assert after.schema == before
    assert after["map"].to_pylist() == [1.0]


def test_a_cut_off_that_is_a_number_is_text_beside_all(tmp_path):
    plan = planned(tmp_path, evaluate={"at": 10})
    table = read(study_bytes(gather(plan, open_store(tmp_path)), "parquet"))
    assert table["at"].to_pylist() == ["10"]


def test_columns_without_a_type_take_that_of_their_values():
    rows = [
        {"n": 1, "x": 1, "flag": True, "mixed": 1, "none": None, "list": [1]},
        {"n": 2, "x": 0.5, "flag": None, "mixed": "a", "none": None, "list": None},
    ]
    table = read(to_parquet(rows, {}))
    assert [str(field.type) for field in table.schema] == [
        "int64",
        "double",
        "bool",
        "string",
        "string",
        "string",
    ]
    assert table.to_pylist()[0]["list"] == "[1]"
    assert table["mixed"].to_pylist() == ["1", "a"]


def test_rows_have_validation_and_sizes_and_times_only_where_asked(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path)
    (trial,) = plan.trials
    final = {"final": {"validation/map": 0.75}, "parameters": 10, "flops": 20}
    finish(store, plan, trial.stages["query"], final, 3.0, device="cpu")
    finish(store, plan, trial.stages["gallery"], {"parameters": 30, "flops": 40}, 5.0)
    finish(store, plan, trial.id, {"map": 0.5}, 0.5)
    found = gather(plan, store)
    (row,) = trial_rows(found)
    assert (row["map"], row["map_validation"]) == (0.5, 0.75)
    assert [row[f"{s}_{n}"] for s in ("query", "gallery") for n in ("parameters", "flops")] == [
        10,
        20,
        30,
        40,
    ]
    assert not any("seconds" in name or name == "device" for name in row)
    (timed,) = trial_rows(found, times=True)
    assert (timed["seconds/query"], timed["seconds/gallery"], timed["seconds/metrics"]) == (
        3.0,
        5.0,
        0.5,
    )
    assert (timed["seconds/centers"], timed["device"]) == (None, "cpu")


def test_sizes_of_networks_that_train_together_are_told_apart(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path, methods=["daph"])
    (trial,) = plan.trials
    sizes = {"parameters": 1, "flops": 2, "gallery_parameters": 3, "gallery_flops": 4}
    finish(store, plan, trial.stages["joint"], sizes)
    (row,) = trial_rows(gather(plan, store))
    names = ("query_parameters", "query_flops", "gallery_parameters", "gallery_flops")
    assert [row[name] for name in names] == [1, 2, 3, 4]


def test_a_search_has_the_same_rows_in_parquet():
    study = sensitivity()
    table = read(search_bytes(study, "parquet"))
    rows = search_rows(study)
    assert len(rows) == table.num_rows > 0
    for one, other in zip(table.to_pylist(), rows, strict=True):
        values = {f"search.{name}": value for name, value in other.pop("values").items()}
        other["at"] = str(other["at"])
        assert one == {**dict.fromkeys(table.column_names), **other, **values}
    assert str(table.schema.field("search.gamma").type) == "double"


def test_a_value_that_is_none_is_not_one_that_does_not_count():
    own = cell(space={"quantizer": [None, "caq"], "gamma": [1.0, 10.0]})
    points = [{"quantizer": None, "gamma": 1.0}, {"gamma": 10.0}]
    center = {"quantizer": None, "gamma": 1.0}
    study = results([own], observed(own, points, (0,)), center=center)
    lines = list(csv.DictReader(io.StringIO(search_bytes(study, "csv").decode())))
    assert [line["search.quantizer"] for line in lines] == ["null", ""]
