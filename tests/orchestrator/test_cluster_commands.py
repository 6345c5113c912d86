"""``asymbench cluster``: what it writes, says and refuses."""

import json
import re

import pytest

from cluster.render import PLACES, options, render
from orchestrator.cli import cli


@pytest.fixture
def run(asymbench):
    return lambda *arguments: asymbench("cluster", *arguments)


def test_render_writes_the_files_and_names_the_stand_ins(run, tmp_path):
    code, out, err = run("render", "slurm", "-o", str(tmp_path / "job"), "--set", "nodes=4")
    assert code == 0
    script = tmp_path / "job" / "asymbench.sbatch"
    assert "#SBATCH --nodes=4" in script.read_text()
    assert script.stat().st_mode & 0o111
    assert not (tmp_path / "job" / "README.md").stat().st_mode & 0o111
    assert str(script) in out.splitlines()
    assert "venv, home" in err


def test_render_tells_in_json_what_it_wrote(run, tmp_path):
    code, out, _ = run("render", "aws", "-o", str(tmp_path), "--set", "spot=false", "--json")
    told = json.loads(out)
    assert code == 0
    assert sorted(told["files"]) == sorted(render("aws", {}).files)
    assert told["values"]["spot"] is False
    assert told["to_fill"] == ["efs_id", "bucket"]


def test_render_goes_into_a_folder_named_after_the_place(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("render", "on-prem")[0] == 0
    assert (tmp_path / "asymbench-on-prem" / "cluster.sh").exists()


def test_files_that_were_edited_are_not_overwritten(run, tmp_path):
    assert run("render", "gcp", "-o", str(tmp_path))[0] == 0
    assert run("render", "gcp", "-o", str(tmp_path))[0] == 0
    (tmp_path / "cluster.yaml").write_text("mine")
    before = (tmp_path / "README.md").read_bytes()
    code, _, err = run("render", "gcp", "-o", str(tmp_path), "--set", "name=other")
    assert code == 2
    assert "differs" in err
    assert (tmp_path / "cluster.yaml").read_text() == "mine"
    assert (tmp_path / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "gpc"], "did you mean 'gcp'"),
        (["render", "aws", "--set", "regoin=x"], "did you mean 'region'"),
        (["render", "aws", "--set", "spot=maybe"], "spot: must be true or false (given: 'maybe')"),
        (["render", "aws", "--set", "spot"], "must be KEY=VALUE"),
        (["render", "aws", "--set", "name=a", "--set", "name=b"], "is given twice"),
        (["options", "slrum"], "did you mean 'slurm'"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_refused(run, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = run("render", "aws", "-o", str(tmp_path / "taken"))
    assert code == 2
    assert "is not a folder" in err


@pytest.mark.parametrize("place", PLACES)
def test_options_lists_every_value_with_default_and_meaning(run, place):
    code, out, _ = run("options", place)
    assert code == 0
    rows = json.loads(run("options", place, "--json")[1])
    assert [row["option"] for row in rows] == [option.name for option in options(place)]
    for option in options(place):
        assert re.search(rf"^{option.name} .*{re.escape(option.doc)}$", out, re.MULTILINE)


def test_options_without_a_place_lists_the_places(run):
    assert [row["place"] for row in json.loads(run("options", "--json")[1])] == list(PLACES)


def test_an_output_folder_without_a_name_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("render", "slurm", "-o", "")
    assert (code, err.count("\n")) == (2, 1)
    assert "--output: must name a folder" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_the_commands_in_what_is_rendered_exist(place):
    found = 0
    for path, file in render(place, {}).files.items():
        pattern = r"(?:^ {4}|[`'\"(]|sbatch |-- |exec )asymbench ([a-z]+)([^\n`']*)"
        for command, rest in re.findall(pattern, file.text, re.MULTILINE):
            assert command in cli.commands, (path, command)
            if command == "cluster":
                continue
            found += 1
            flags = {flag for param in cli.commands[command].params for flag in param.opts}
            assert set(re.findall(r"--[a-z]+", rest)) <= flags, (path, command)
    assert found
