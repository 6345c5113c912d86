"""What every registered method promises; a new one is tested here without a line of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asymbench.testing import MethodContract
from methods.base import METHODS, HashMethod, Task, build_method
from retrieval import registry as registry_module

NAMES = METHODS.names()

VARIANTS = {
    "csch_released_code": ("csch", {"instance": "released_code"}),
    "csch_contrastive": ("csch", {"instance": "contr_sg"}),
    "csch_bce": ("csch", {"center_loss": "bce"}),
    "csch_label_smoothing": ("csch", {"center_loss": "label_smoothing"}),
    "csch_caq": ("csch", {"quantizer": {"name": "caq", "mode": "replace"}}),
    "csq_mlp3": ("csq", {"head": "mlp3_tanh", "distill_target": "binary"}),
    "orthohash_arc": ("orthohash", {"kind": "arc", "quant_weight": 0.1}),
    "daph_with_centers": ("daph", {"center_weight": 1.0}),
    "mdsh_early": ("mdsh", {"epoch_change": 1}),
    "mdsh_no_bank": ("mdsh", {"beta": 0.0}),
    "aml_contr_tuples": ("aml_contr", {"form": "tuples"}),
    "aml_contr_per_type": ("aml_contr", {"reduce": "per_type"}),
    "aml_reg_norm": ("aml_reg", {"form": "norm"}),
    "ssp_of_csq": ("ssp", {"teacher": "csq", "subspaces": 2}),
    "l2_binary": ("l2", {"teacher": "csq", "target": "binary"}),
}
"""Settings under which a method has other losses, stages or state than by default."""

QUICK = {"adsq": {"label_hidden": 64}}
"""The same losses with a smaller label network, which is trained for every specimen."""

for _name in NAMES:
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}", (MethodContract,), {"method": _name, "params": QUICK.get(_name, {})}
    )
for _title, (_name, _params) in VARIANTS.items():
    globals()[f"Test_{_title}"] = type(
        f"Test_{_title}", (MethodContract,), {"method": _name, "params": _params}
    )


def test_no_method_fails_to_import():
    assert METHODS.broken() == {}
    assert {"csch", "csq", "l2", "orthohash"} <= set(NAMES)


def test_every_method_of_this_package_is_under_the_contract():
    for name in NAMES:
        assert issubclass(globals()[f"Test_{name}"], MethodContract)


def test_importing_methods_does_not_import_torch():
    modules = sorted({METHODS.origin(name) for name in NAMES})
    code = (
        f"import sys, {', '.join(modules)};"
        "assert not {'torch', 'timm', 'scipy', 'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- methods of other packages -------------------------------------------------------


class _Point:
    """An installed package's entry point."""

    def __init__(self, name, load):
        self.name, self.module, self.load = name, "somewhere.else", load


def test_a_method_of_an_installed_package_is_found_by_its_entry_point(monkeypatch):
    plain = METHODS.get("l2")

    class Third(plain):
        """A method from elsewhere."""

    def broken():
        raise ImportError("needs a package that is not there")

    points = [_Point("third", lambda: Third), _Point("torn", broken)]
    monkeypatch.setattr(
        registry_module,
        "entry_points",
        lambda group: points if group == "asymbench.methods" else [],
    )
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "_origin", dict(METHODS._origin))
    monkeypatch.setattr(METHODS, "_broken", {})
    monkeypatch.setattr(METHODS, "_loaded", False)
    assert "third" in METHODS.names()
    method = build_method("third", {}, Task(bits=16, n_classes=5, n_train=40, multi_label=False))
    assert isinstance(method, HashMethod)
    assert method.name == "third"
    assert plain.name == "l2"
    with pytest.raises(ImportError, match="not there"):
        METHODS.get("torn")
    assert set(NAMES) < set(METHODS.names())
