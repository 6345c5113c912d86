"""What goes to a cluster that is driven from outside: the study, options, code, environment."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from cluster import remote as driving
from orchestrator import shipping
from orchestrator.cli import cli, guarded
from orchestrator.remote import RemoteOptions, run_remotely
from orchestrator.shipping import pack
from retrieval.errors import InputError

ROOT = Path(__file__).parents[2]
ADDRESS = "ray://head:10001"
STUDY = "study: mine\ndatasets: [digits]\npairs: [tiny]\nmethods: [csch]\nbits: [16]\n"


@pytest.fixture
def sent(monkeypatch, tmp_path):
    """What would be sent to the cluster: keyword arguments and the job."""
    seen = {}

    def drive(address, job, **options):
        seen.update(options, address=address, job=job)
        return 7

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driving, "drive", drive)
    for name in ("ASYMBENCH_HOME", "ASYMBENCH_STORE", "ASYMBENCH_LEASES", "ASYMBENCH_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "my study.yaml").write_text(STUDY)
    return seen


def refusal(**options):
    with pytest.raises(InputError) as caught:
        run_remotely("my study.yaml", (), address=ADDRESS, options=RemoteOptions(**options))
    return str(caught.value)


def test_study_overrides_and_options_go_along(sent):
    arguments = [
        "run",
        "my study.yaml",
        "--address",
        ADDRESS,
        "--set",
        "bits=[32]",
        "--json",
        "--home",
        "/shared/runs",
        "--detach",
    ]
    assert guarded(lambda: cli(arguments, standalone_mode=False)) == 7
    job = sent["job"]
    assert job.arguments == (
        "run",
        "my_study.yaml",
        "--address",
        "{address}",
        "--set=bits=[32]",
        "--json",
    )
    assert job.files == {"my_study.yaml": STUDY}
    assert (job.home, sent["detach"], sent["address"]) == ("/shared/runs", True, ADDRESS)
    assert job.name.startswith("mine-")


def test_the_same_command_is_the_same_job_and_another_study_text_is_not(sent, tmp_path):
    def digest(*overrides):
        run_remotely("my study.yaml", overrides, address=ADDRESS)
        return sent["job"].name, sent["job"].digest()

    first = digest()
    assert digest() == first
    assert digest("bits=[32]")[0] == first[0]
    assert digest("bits=[32]")[1] != first[1]


def test_a_preset_goes_by_its_name(sent):
    run_remotely("quickstart", (), address=ADDRESS)
    assert sent["job"].arguments[:2] == ("run", "quickstart")
    assert sent["job"].files == {}


@pytest.mark.parametrize("study", ["missing.yaml", "a/b", "no name"])
def test_a_study_that_is_not_there_is_refused_here(sent, study):
    with pytest.raises(InputError, match="no such study file"):
        run_remotely(study, (), address=ADDRESS)


def test_home_is_the_options_else_the_environments_and_absolute(sent, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_HOME", "/mine")
    run_remotely("my study.yaml", (), address=ADDRESS)
    assert sent["job"].home == "/mine"
    run_remotely("my study.yaml", (), address=ADDRESS, options=RemoteOptions(home="/theirs"))
    assert sent["job"].home == "/theirs"
    assert "--home: on a cluster this must be an absolute path" in refusal(home="runs")
    monkeypatch.setenv("ASYMBENCH_HOME", "runs")
    assert "ASYMBENCH_HOME: on a cluster" in refusal()


def test_the_store_goes_along_but_no_password(sent, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_STORE", "s3://bucket/p")
    run_remotely("my study.yaml", (), address=ADDRESS)
    assert sent["job"].environment == {"ASYMBENCH_STORE": "s3://bucket/p"}
    monkeypatch.setenv("ASYMBENCH_STORE", "s3://me:hunter22@bucket/p")
    assert "hunter22" not in refusal()


@pytest.mark.parametrize(
    "option", [["--home", "/x"], ["--ship", "x"], ["--runtime-env", "x"], ["--detach"]]
)
def test_options_of_remote_runs_are_refused_elsewhere(sent, capsys, option):
    arguments = ["run", "my study.yaml", *option]
    assert guarded(lambda: cli(arguments, standalone_mode=False)) == 2
    assert f"{option[0]}: is for --address ray://HOST:PORT" in capsys.readouterr().err


# ---- runtime environments -------------------------------------------------------------------


def environment(tmp_path, text):
    (tmp_path / "env.yaml").write_text(text)
    return {"runtime_env": "env.yaml"}


def test_a_runtime_environment_is_read_and_local_code_is_packed(sent, tmp_path):
    (tmp_path / "mod.py").write_text("A = 1\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "other.py").write_text("B = 2\n")
    text = """\
pip: [einops==0.8.0]
env_vars: {NCCL_DEBUG: INFO, LEVEL: 3}
py_modules: [mod.py, "s3://bucket/code.zip"]
working_dir: tree
"""
    options = RemoteOptions(**environment(tmp_path, text))
    run_remotely("my study.yaml", (), address=ADDRESS, options=options)
    job = sent["job"]
    assert job.runtime_env == {
        "pip": ["einops==0.8.0"],
        "env_vars": {"NCCL_DEBUG": "INFO", "LEVEL": "3"},
        "py_modules": ["s3://bucket/code.zip"],
    }
    with zipfile.ZipFile(io.BytesIO(job.code)) as archive:
        assert archive.namelist() == ["mod.py", "other.py"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conda: {}", "unknown key 'conda'"),
        ("pipp: [a]", "did you mean 'pip'?"),
        ("- pip", "must be a mapping"),
        ("pip: [", "is no YAML"),
        ("pip: einops", "must be a list of texts"),
        ("env_vars: [A]", "must be a mapping of names"),
        ("env_vars: {A: true}", "quote it"),
        ("env_vars: {A B: x}", "no name of a variable"),
        ("env_vars: {ASYMBENCH_HOME: /x}", "give it with --home"),
        ("env_vars: {HF_TOKEN: hunter2222}", "looks like a credential"),
        ("env_vars: {HF_TOKEN: [hunter2222]}", "looks like a credential"),
        ("env_vars: {MLFLOW_TRACKING_PASSWORD: hunter2222}", "looks like a credential"),
        ("env_vars: {URL: 'http://me:hunter2222@host'}", "looks like a credential"),
        ("env_vars: {A: AKIAABCDEFGHIJKLMNOP}", "looks like a credential"),
        ("pip: ['https://me:hunter2222@host/a.whl']", "looks like a credential"),
        ("working_dir: [a]", "must be a path or a URI"),
        ("working_dir: nowhere", "there is no such folder"),
        ("py_modules: [nowhere]", "there is no such path"),
    ],
)
def test_a_wrong_runtime_environment_is_refused(sent, tmp_path, text, words):
    message = refusal(**environment(tmp_path, text))
    assert words in message
    assert "hunter2222" not in message
    assert sent == {}


def test_one_folder_of_code_only(sent, tmp_path):
    (tmp_path / "mod.py").write_text("")
    options = environment(tmp_path, "working_dir: s3://bucket/code.zip")
    assert "one working_dir only" in refusal(ship=("mod.py",), **options)


def test_a_runtime_environment_that_is_not_there_is_refused(sent):
    assert "--runtime-env: cannot be read" in refusal(runtime_env="none.yaml")


# ---- code -----------------------------------------------------------------------------------


def names(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


def test_packages_modules_and_wheels_are_packed_the_same_each_time(tmp_path):
    package = tmp_path / "own"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    (package / "__init__.py").write_text("")
    (package / "table.csv").write_text("1")
    (tmp_path / "mod.py").write_text("A = 1\n")
    with zipfile.ZipFile(tmp_path / "w-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("w.py", "W = 1\n")
        wheel.writestr("w-1.dist-info/entry_points.txt", "[asymbench.methods]\n")
    ships = [str(package), str(tmp_path / "mod.py"), str(tmp_path / "w-1-py3-none-any.whl")]
    packed = pack(ships)
    assert names(packed) == [
        "mod.py",
        "own/__init__.py",
        "own/table.csv",
        "w-1.dist-info/entry_points.txt",
        "w.py",
    ]
    (tmp_path / "mod.py").touch()
    assert pack(reversed(ships)) == packed
    assert pack([]) == b""


@pytest.mark.slow
def test_a_project_is_built_into_a_wheel_without_touching_its_folder():
    project = ROOT / "examples" / "own_method"
    before = sorted(project.iterdir())
    found = names(pack([str(project)]))
    assert "own_method.py" in found
    assert any(name.endswith("dist-info/entry_points.txt") for name in found)
    assert sorted(project.iterdir()) == before


def test_what_is_no_code_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.whl").write_text("no zip")
    for given, words in (
        ("empty", "must be a package"),
        ("none", "there is no such path"),
        ("bad.whl", "no wheel that can be read"),
    ):
        with pytest.raises(InputError, match=words):
            pack([str(tmp_path / given)])
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as wheel:
        wheel.writestr("../evil.py", "")
    with pytest.raises(InputError, match="unsafe name"):
        pack([str(tmp_path / "evil.whl")])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(folder)
    with pytest.raises(InputError, match=r"brings same\.py, and so does"):
        pack([str(tmp_path / "a" / "same.py"), str(tmp_path / "b" / "same.py")])
    monkeypatch.setattr(shipping, "LIMIT", 0)
    with pytest.raises(InputError, match="ship code, and keep data"):
        pack([str(tmp_path / "a" / "same.py")])
