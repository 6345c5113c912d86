"""The commands prepare and describe: one message for a mistake, progress, and going on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data_commands import Decoding


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    old = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "home"
    signal.signal(signal.SIGTERM, old)


@pytest.fixture
def photos(tmp_path):
    for title in ("cat", "dog"):
        (tmp_path / "photos" / title).mkdir(parents=True)
        for number in range(30):
            rng = np.random.default_rng(number + 1000 * (title == "dog"))
            pixels = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / title / f"{number:03d}.png")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path / "photos"


NAMES = [("folder", "--root", "photos"), ("{folder: photos}",),
         ("{name: folder, root: photos}",), ("folder", "--set", "root=photos"),
         ("photos",)]  # fmt: skip


@pytest.mark.parametrize("named", NAMES)
def test_a_dataset_is_prepared_and_the_second_time_left_alone(asymbench, photos, named):
    code, out, err = asymbench("prepare", *named)
    assert code == 0
    assert "folder: 60 images, 2 classes" in out
    assert "ready: 60 images decoded to 12 x 12 pixels" in out
    assert "decoded 60 of 60 images" in err
    code, out, err = asymbench("prepare", *named)
    assert code == 0
    assert out.startswith("already prepared: ")
    assert err == ""


def test_a_leak_is_told_every_time(asymbench, photos):
    (photos / "cat" / "001.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    keys = sorted(f"{path.parent.name}/{path.name}" for path in photos.rglob("*.png"))
    split = {
        "query": ["cat/000.png"],
        "gallery": keys[1:],
        "train": keys[1:40],
        "validation_query": keys[40:50],
        "validation_gallery": keys[50:],
    }
    Path("split.json").write_text(json.dumps(split))
    settings = ["--set", "duplicates=keep", "--set", "protocol.split_file=split.json"]
    for beginning in ("folder: 60 images", "already prepared: "):
        code, out, err = asymbench("prepare", "photos", *settings)
        assert code == 0, err
        assert out.startswith(beginning)
        assert "LEAK between query and gallery: 1 image, the first:" in out
        assert "    cat/000.png  =  cat/001.png" in out


def test_a_list_or_a_zip_of_ones_own_is_a_dataset_by_its_path(asymbench, photos):
    lines = [f"{path},{path.parent.name}" for path in sorted(Path("photos").rglob("*.png"))]
    Path("list.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    shutil.make_archive("packed", "zip", ".", "photos")
    for given, name in (("list.csv", "manifest"), ("packed.zip", "folder")):
        code, out, err = asymbench("describe", given)
        assert code == 0, err
        assert f"{name}: 60 images, 2 classes" in out


def test_prepare_prints_json(asymbench, photos, home):
    for fresh in (True, False):
        code, out, _ = asymbench("prepare", "folder", "--root", "photos", "--json")
        assert code == 0
        found = json.loads(out)
        assert found["ready"]
        assert found["fresh"] == fresh
        assert Path(found["path"]).parent == home / "prepared"


def test_options_of_the_dataset_are_set_by_dotted_keys(asymbench, photos):
    _, out, _ = asymbench(
        "describe", "folder", "--root", "photos", "--json", "--set", "protocol.query_per_class=3",
        "--set", "protocol.split_seed=4", "--set", "label=mine",
    )  # fmt: skip
    found = json.loads(out)
    assert found["splits"]["query"]["images"] == 6
    assert found["protocol"]["split_seed"] == 4
    assert found["label"] == "mine"


@pytest.mark.parametrize("command", ["prepare", "describe"])
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["foldr", "--root", "photos"], ["unknown dataset 'foldr'", "did you mean 'folder'?"]),
        (["folder"], ["root: ", "where the images of 'folder' lie"]),
        ([""], ["unknown dataset ''; known: "]),
        (["./phots"], ["DATASET: there is no such folder", "(given: './phots')"]),
        (["phots.zip"], ["DATASET: there is no such folder", "(given: 'phots.zip')"]),
        (["~phots"], ["DATASET: there is no such folder", "(given: '~phots')"]),
        (["folder", "--root", "phots"], ["root: ", "does not exist (given: "]),
        (["folder", "--root", ""], ["root: "]),
        (["{folder: photos}", "--root", "photos"], ["--root: ", "one too many"]),
        (["{folder: photos"], ["DATASET"]),
        (["{1: 2}"], ["a dataset needs a name"]),
        (["photos", "--root", "photos"], ["--root: ", "one too many"]),
        (["notes.txt"], ["dataset 'manifest'", "notes.txt"]),
        (["folder", "--root", "photos", "--set", "duplicates=kep"],
         ["--set  duplicates: ", "did you mean 'keep'?", "(given: 'kep')"]),
        (["folder", "--root", "photos", "--set", "protocol.qery_per_class=3"],
         ["--set  protocol.qery_per_class: ", "did you mean 'query_per_class'"]),
        (["folder", "--root", "photos", "--set", "duplicates"], ["write --set key=value"]),
        (["folder", "--root", "photos", "--set", "protocol.query_per_class=31"],
         ["class 'cat' has 30 images"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(asymbench, photos, home, command, args, parts):
    code, out, err = asymbench(command, *args)
    assert code == 2
    assert out == ""
    assert err.startswith("asymbench: ")
    assert err.count("asymbench: ") == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert not (home / "images").exists()
    assert not (home / "prepared").exists()


def test_unreadable_images_are_refused_and_can_then_be_left_out(asymbench, photos, home):
    (photos / "cat" / "003.png").write_bytes(b"no image")
    code, out, err = asymbench("prepare", "folder", "--root", "photos")
    assert code == 2
    assert out == ""
    assert "1 image of 60 cannot be read: cat/003.png (no image that can be decoded)" in err
    (exclude,) = (home / "prepared").glob("*.exclude.txt")
    assert f"leave them out with exclude: {exclude}" in err
    code, out, _ = asymbench(
        "prepare", "folder", "--root", "photos", "--set", f"exclude={exclude}"
    )
    assert code == 0
    assert "ready: 59 images" in out


# ---- interruption ----------------------------------------------------------------------------

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background
from retrieval.images import build, decoding
from retrieval.datasets import files
original = files.decode_bytes
def slowly(data, name):
    time.sleep(0.01)
    return original(data, name)
files.decode_bytes = slowly
build.cores = lambda: 1
from orchestrator import data_commands
data_commands._QUIET_SECONDS = 0.0
from orchestrator.cli import main
sys.argv[0] = "asymbench"
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_go_on_and_goes_on(asymbench, photos, home, sent):
    args = ["prepare", "folder", "--root", "photos", "--set", "label=a b"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("decoded 32 of 60 images"):
            process.send_signal(sent)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + err
    assert out == ""
    again = "asymbench prepare folder --root photos --set 'label=a b'"
    assert f"interrupted; what is decoded is kept. To go on: {again}" in err
    assert "Traceback" not in err
    assert not (home / "prepared").exists()
    code, out, err = asymbench(*args)
    assert code == 0
    assert err.startswith("decoded 32 of 60 images\n")
    assert "ready: 60 images" in out


# ---- describe --------------------------------------------------------------------------------


def test_describe_shows_splits_and_builds_no_store(asymbench, photos, home):
    code, out, err = asymbench("describe", "folder", "--root", "photos")
    assert code == 0
    assert err == ""
    assert "folder: 60 images, 2 classes, one label an image" in out
    assert "px: width 15 to 15, median 15; height 12 to 12, median 12" in out
    assert not (home / "images").exists()


def test_describe_draws_a_picture(asymbench, photos, tmp_path):
    code, out, _ = asymbench("describe", "folder", "--root", "photos", "-o", "p.png")
    assert code == 0
    assert "60 images" in out
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
        both = picture.size
    asymbench("describe", "folder", "--root", "photos", "-o", "q.png", "--classes", "1")
    with Image.open(tmp_path / "q.png") as picture:
        assert picture.size == (both[0], both[1] - 102)


@pytest.mark.parametrize(
    ("output", "part"),
    [("p.jpg", "let the name end with .png"), ("gone/p.png", "no such folder"), (".", "a file")],
)
def test_a_picture_that_cannot_be_written_is_refused(asymbench, photos, output, part):
    code, out, err = asymbench("describe", "folder", "--root", "photos", "-o", output)
    assert code == 2
    assert out == ""
    assert "--output: " in err
    assert part in err


# ---- progress --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_where_there_is_no_terminal_is_a_line_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    decoding = Decoding(stream, lambda: now[0])
    for seconds, done in ((0, 1000), (4, 1400), (10, 2000), (15, 2500), (16, 3000)):
        now[0] = seconds
        decoding(done, 3000)
    decoding.end()
    assert stream.getvalue().splitlines() == [
        "decoded 1,000 of 3,000 images",
        "decoded 2,000 of 3,000 images, 100 images/s, 10 s left",
        "decoded 3,000 of 3,000 images, 125 images/s",
    ]


def test_progress_on_a_terminal_writes_one_line_over():
    now = [0.0]
    stream = Terminal()
    decoding = Decoding(stream, lambda: now[0])
    for seconds, done in ((0, 0), (0.1, 5), (1, 10), (2, 20)):
        now[0] = seconds
        decoding(done, 20)
    decoding.end()
    decoding.end()
    assert stream.getvalue() == (
        "\rdecoded 0 of 20 images\x1b[K"
        "\rdecoded 10 of 20 images, 10 images/s, 1.0 s left\x1b[K"
        "\rdecoded 20 of 20 images, 10 images/s\x1b[K\n"
    )


def test_neither_command_needs_torch_to_be_found():
    code = (
        "import sys; import orchestrator.cli; print('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout == "False False\n"
