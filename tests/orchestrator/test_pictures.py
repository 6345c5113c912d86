from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.pictures import PICTURE_SIZE, pr_curve_png, precision_at_k_png

PR = [{"recall": 0.0, "precision": 1.0}, {"recall": 0.5, "precision": 0.8}]
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(path) as image:
        assert image.size == PICTURE_SIZE
        return np.asarray(image.convert("RGB"))


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == np.array(colour, dtype=np.uint8)).all(axis=-1).sum())


def test_pr_curve_draws_each_curve_in_its_own_colour(tmp_path: Path) -> None:
    one = pixels(pr_curve_png([("csch", PR)], tmp_path / "one.png"))
    two = pixels(pr_curve_png([("csch", PR), ("csq", PR[::-1])], tmp_path / "two.png"))
    assert count(one, BLUE) > 200
    assert count(one, VERMILION) == 0
    assert count(two, VERMILION) > 200


def test_pr_curve_same_input_gives_same_bytes_without_software_version(tmp_path: Path) -> None:
    first = pr_curve_png([("csch 32 bits", PR)], tmp_path / "a.png").read_bytes()
    again = pr_curve_png([("csch 32 bits", PR)], tmp_path / "b.png").read_bytes()
    assert first == again
    assert b"matplotlib" not in first.lower()


def test_pr_curve_is_joined_by_recall_whatever_the_order_given(tmp_path: Path) -> None:
    forth = pr_curve_png([("x", PR)], tmp_path / "a.png").read_bytes()
    back = pr_curve_png([("x", PR[::-1])], tmp_path / "b.png").read_bytes()
    assert forth == back


@pytest.mark.parametrize("label", ["_hidden", "$unclosed", "x" * 300, "", "a → b"])
def test_pr_curve_with_awkward_label_still_shows_it(tmp_path: Path, label: str) -> None:
    image = pixels(pr_curve_png([(label, PR)], tmp_path / "p.png"))
    below_the_axis = image[680:]
    assert count(below_the_axis, BLUE) > 50  # the legend's sample line is there


def test_pr_curve_without_curves_is_a_picture_that_says_so(tmp_path: Path) -> None:
    pixels(pr_curve_png([], tmp_path / "p.png"))


def test_precision_at_k_spanning_decades_and_not_are_both_drawn(tmp_path: Path) -> None:
    wide = precision_at_k_png([("csch", {1: 0.9, 100: 0.8, 5000: 0.5})], tmp_path / "w.png")
    near = precision_at_k_png([("csch", {10: 0.9, 20: 0.8})], tmp_path / "sub" / "n.png")
    assert count(pixels(wide), BLUE) > 200
    assert count(pixels(near), BLUE) > 200
    assert wide.read_bytes() != near.read_bytes()


def test_precision_at_k_same_input_gives_same_bytes(tmp_path: Path) -> None:
    curves = [(f"m{i}", {1: 0.9, 10: 0.9 - i / 40}) for i in range(16)]
    first = precision_at_k_png(curves, tmp_path / "a.png").read_bytes()
    assert first == precision_at_k_png(curves, tmp_path / "b.png").read_bytes()


def test_precision_at_k_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="K must be >= 1, got 0"):
        precision_at_k_png([("x", {0: 0.5})], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_pictures_replace_the_old_file_and_leave_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"old")
    pixels(pr_curve_png([("x", PR)], tmp_path / "p.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_import_of_pictures_does_not_import_matplotlib_and_drawing_not_pyplot(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, orchestrator.pictures as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.pr_curve_png([], sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "p.png")], check=True, cwd=root)
