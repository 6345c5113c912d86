"""The command `report`: every format, and what it refuses."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

STUDY = """\
study: mine
datasets: [digits]
pairs: [tiny]
methods: [csch, csq]
bits: [16]
"""


@pytest.fixture
def report(asymbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.yaml").write_text(STUDY)
    return lambda *options: asymbench("report", "mine.yaml", *options)


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("text", "digits · tiny · mAP@all\n"),
        ("md", "**digits · tiny · mAP@all**\n"),
        ("csv", "method,dataset,pair,bits,seed,"),
        ("tex", "% Needs in the preamble:\n"),
        ("json", "[\n"),
    ],
)
def test_every_format_is_printed_and_written_alike(report, tmp_path, form, begins):
    printed = report("--format", form)
    assert (printed.code, printed.err) == (0, "")
    assert printed.out.startswith(begins)
    written = report("--format", form, "-o", "table")
    assert (written.code, written.out) == (0, "")
    assert (tmp_path / "table").read_text() == printed.out


def test_text_is_what_is_printed_by_default_and_json_by_its_flag(report):
    assert report().out == report("--format", "text").out
    assert report("--json").out == report("--format", "json").out
    assert report("--json", "--format", "json").out == report("--json").out
    rows = json.loads(report("--json").out)
    assert all({"method", "dataset", "pair", "bits", "seed", "map"} <= row.keys() for row in rows)


def test_parquet_goes_to_a_file(report, tmp_path):
    assert report("--format", "parquet", "-o", "x.parquet").code == 0
    assert pq.read_table(tmp_path / "x.parquet")["method"].to_pylist() == ["csch", "csq"]


def test_a_document_of_its_own(report):
    text = report("--format", "tex", "--standalone").out
    assert text.startswith(r"\documentclass")
    assert text.endswith("\\end{document}\n")


def test_a_search_has_every_format(report, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        STUDY.replace("[csch, csq]", "[csch]")
        + "kind: sensitivity\nsearch: {gamma: [1.0, 10.0]}\nsensitivity: {design: one_at_a_time}\n"
    )
    for form in ("text", "md", "csv", "tex", "json"):
        found = report("--format", form)
        assert (found.code, found.err) == (0, ""), form
    assert report("--format", "parquet", "-o", "x.parquet").code == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.num_rows == len(json.loads(report("--json").out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "parquet"], "--output"),
        (["--format", "latex"], "tex"),
        (["--json", "--format", "csv"], "two formats"),
        (["--standalone"], "--format tex"),
        (["--standalone", "--format", "md"], "--format tex"),
        (["--price", "2"], "--html"),
        (["--html", "page", "--format", "md"], "--html"),
        (["--html", "page", "--json"], "--html"),
        (["--html", "page", "-o", "x"], "--html"),
        (["--html", "page", "--price", "cheap"], "2.5"),
        (["--html", ""], "folder"),
        (["--html", "mine.yaml"], "folder"),
        (["--html", "mine.yaml/page"], "folder"),
        (["-o", "nowhere/x"], "no such folder"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_message(report, tmp_path, options, said):
    found = report(*options)
    assert found.code == 2
    assert found.out == ""
    assert found.err.startswith("asymbench: ") and said in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "page").exists()
