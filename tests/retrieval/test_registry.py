from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from retrieval import registry as registry_module
from retrieval.errors import UnknownNameError
from retrieval.registry import Registry


class First:
    name: str


class Second:
    name: str


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A package with a good module, a broken one, a private one and one of infrastructure."""
    package = tmp_path / "sample_plugins"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from retrieval.registry import Registry\n"
        "TABLE = Registry('method', package='sample_plugins', infrastructure=['base'])\n"
    )
    (package / "good.py").write_text(
        "from sample_plugins import TABLE\n@TABLE.register('good')\nclass Good: pass\n"
    )
    (package / "broken.py").write_text("raise RuntimeError('no such kernel')\n")
    (package / "_private.py").write_text("raise AssertionError('imported')\n")
    (package / "base.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import sample_plugins

    yield sample_plugins.TABLE
    for name in [name for name in sys.modules if name.split(".")[0] == "sample_plugins"]:
        del sys.modules[name]


def test_register_sets_the_name_and_get_returns_the_entry():
    table: Registry[type] = Registry("method")
    assert table.register("first")(First) is First
    assert First.name == "first"
    assert table.get("first") is First
    assert table.origin("first") == First.__module__
    assert "first" in table
    assert "second" not in table


def test_names_are_sorted_and_iteration_follows_them():
    table: Registry[type] = Registry("method")
    table.register("b")(First)
    table.register("a")(Second)
    assert table.names() == list(table) == ["a", "b"]


def test_second_entry_of_one_name_is_refused_and_both_places_are_named():
    table: Registry[type] = Registry("method")
    table.register("x")(First)
    other = type("Other", (), {"__module__": "elsewhere.other"})
    with pytest.raises(ValueError, match=r"'x' is registered twice: by .*by elsewhere\.other"):
        table.register("x")(other)
    assert table.get("x") is First


def test_registering_the_same_entry_again_is_no_error():
    table: Registry[type] = Registry("method")
    table.register("x")(First)
    table.register("x")(First)
    assert table.names() == ["x"]


def test_entry_that_is_not_a_class_is_kept_as_it_is():
    table: Registry[int] = Registry("number")
    table.register("three")(3)
    assert table.get("three") == 3
    assert table.origin("three") == "builtins"


def test_unknown_name_raises_with_the_near_name():
    table: Registry[type] = Registry("pair")
    table.register("resnet50")(First)
    with pytest.raises(UnknownNameError, match="unknown pair 'resnet5'; did you mean 'resnet50'"):
        table.get("resnet5")


def test_package_modules_are_imported_at_the_first_look_up_only(plugins):
    assert "sample_plugins.good" not in sys.modules
    assert plugins.names() == ["good"]
    assert plugins.origin("good") == "sample_plugins.good"


def test_broken_module_leaves_the_others_usable_and_raises_for_its_own_name(plugins):
    assert plugins.get("good").__name__ == "Good"
    assert list(plugins.broken()) == ["broken"]
    with pytest.raises(RuntimeError, match="no such kernel"):
        plugins.get("broken")


def _points(monkeypatch, *points):
    def entry_points(*, group):
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)


def _point(name, load, group="asymbench.methods"):
    return SimpleNamespace(name=name, module=f"third.{name}", group=group, load=load)


def test_entry_points_of_the_group_are_registered(monkeypatch):
    _points(monkeypatch, _point("third", lambda: Second), _point("x", lambda: First, "other"))
    table: Registry[type] = Registry("method", group="asymbench.methods")
    assert table.names() == ["third"]
    assert table.get("third") is Second


def test_entry_point_that_fails_to_load_is_raised_for_its_own_name_only(monkeypatch):
    def fail():
        raise ImportError("needs cupy")

    _points(monkeypatch, _point("bad", fail), _point("fine", lambda: First))
    table: Registry[type] = Registry("method", group="asymbench.methods")
    assert table.names() == ["fine"]
    with pytest.raises(ImportError, match="needs cupy"):
        table.get("bad")


def test_entry_point_does_not_replace_a_built_in(monkeypatch):
    _points(monkeypatch, _point("mine", lambda: Second))
    table: Registry[type] = Registry("method", group="asymbench.methods")
    table.register("mine")(First)
    assert table.get("mine") is First
