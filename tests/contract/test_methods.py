"""What every registered method promises; a new one is tested here without a line of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch

from methods.base import METHODS, Batch, HashMethod, Schedule, Task, build_method
from methods.centers import make_centers
from retrieval import registry as registry_module
from retrieval.errors import InputError

N, BITS, CLASSES = 8, 16, 5
NAMES = METHODS.names()
KINDS = pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
EVERY = pytest.mark.parametrize("name", NAMES)
FIELDS = [(name, field) for name in NAMES for field in METHODS.get(name).Params.model_fields]


def task(*, multi=False, bits=BITS, classes=CLASSES):
    return Task(bits=bits, n_classes=classes, n_train=40, multi_label=multi)


def build(name, *, multi=False, **params):
    return build_method(name, params, task(multi=multi))


def batch(*, multi, dtype=torch.float64, epoch=0):
    rng = np.random.default_rng(3)
    classes = rng.integers(0, CLASSES, N)
    labels = np.eye(CLASSES)[classes]
    if multi:
        labels = np.maximum(labels, rng.integers(0, 2, labels.shape))
        labels[np.arange(N), (classes + 1) % CLASSES] = 0  # of every class there is no negative
    return Batch(
        rows=torch.arange(N) * 3,
        labels=torch.tensor(labels, dtype=dtype),
        classes=None if multi else torch.tensor(classes),
        tie_bits=torch.tensor(rng.choice([-1.0, 1.0], (N, BITS)), dtype=dtype),
        epoch=epoch,
    )


def outputs(dtype=torch.float64):
    rng = np.random.default_rng(4)
    h_q, h_g = rng.normal(size=(2, N, BITS))
    return torch.tensor(h_q, dtype=dtype), torch.tensor(h_g, dtype=dtype)


def state(method, dtype=torch.float64):
    spec = method.gallery_method().centers()
    if spec is None:
        return {}
    codes, _ = make_centers(CLASSES, BITS, spec, 0)
    return {"centers": torch.tensor(codes, dtype=dtype)}


def codes(method, h_g):
    """What the method's query sees of the gallery's outputs."""
    return torch.where(h_g >= 0, 1.0, -1.0).to(h_g.dtype) if method.recording == "sign" else h_g


def trains_a_gallery(method):
    return method.gallery_method() is method and method.schedule is not Schedule.JOINT


def losses(method, data, h_q, h_g, kept):
    """All loss terms of all stages of the method, by stage and name."""
    if method.schedule is Schedule.JOINT:
        return {f"joint {k}": v for k, v in method.joint_loss(h_q, h_g, data, kept).items()}
    query = method.query_loss(h_q, codes(method, h_g.detach()), data, kept)
    terms = {f"query {k}": v for k, v in query.items()}
    if trains_a_gallery(method):
        gallery = method.gallery_loss(h_g, data, kept)
        terms |= {f"gallery {k}": v for k, v in gallery.items()}
    return terms


# ---- declarations --------------------------------------------------------------------


def test_no_method_fails_to_import():
    assert METHODS.broken() == {}
    assert {"csch", "csq", "l2", "orthohash"} <= set(NAMES)


@EVERY
def test_source_says_which_paper_and_where_the_defaults_are_from(name):
    source = METHODS.get(name).source
    assert source.title
    assert source.venue
    assert 2000 < source.year < 2100
    assert source.settings_from
    assert METHODS.get(name).__doc__
    assert METHODS.get(name).version >= 1


@EVERY
@KINDS
def test_defaults_build_and_describe_themselves(name, multi):
    method = build(name, multi=multi)
    shown = method.describe()
    assert shown["name"] == name == method.name
    json.dumps(shown)
    assert method.head in ("fc_bn", "fc_tanh", "fc_bn_tanh", "mlp3_tanh")
    assert isinstance(method.schedule, Schedule)
    teacher = method.gallery_method()
    assert teacher.gallery_method() is teacher
    assert method.head == teacher.head


@EVERY
def test_hyperparameters_survive_json(name):
    params = METHODS.get(name).Params()
    text = json.dumps(params.model_dump(mode="json"))
    assert type(params).parse(json.loads(text)) == params


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_hyperparameter_declares_readers_meaning_and_valid_search_values(name, field):
    params = METHODS.get(name).Params
    assert set(params.readers(field)) <= {"centers", "gallery", "query"}
    info = params.model_fields[field]
    assert info.description
    for value in info.json_schema_extra["search"]:
        assert getattr(params.parse({field: value}), field) == value


@EVERY
def test_unknown_hyperparameters_are_refused_by_name(name):
    fields = list(METHODS.get(name).Params.model_fields)
    with pytest.raises(InputError, match=f"did you mean '{fields[0]}'") as caught:
        METHODS.get(name).Params.parse({fields[0] + "x": 1})
    assert caught.value.key == fields[0] + "x"


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_hyperparameters_out_of_range_are_refused_by_name(name, field):
    params = METHODS.get(name).Params
    info = params.model_fields[field]
    wrong = [object()]
    for limit in info.metadata:
        for attribute, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if (bound := getattr(limit, attribute, None)) is not None:
                wrong.append(type(bound)(bound + step))
    if typing.get_origin(info.annotation) is typing.Literal:
        wrong.append("no such option")
    if info.annotation is float:
        wrong += ["0.5", float("nan"), float("inf")]
        assert info.metadata, f"{name}.{field} has no range"
    for value in wrong:
        with pytest.raises(InputError) as caught:
            params.parse({field: value})
        assert caught.value.key == field


@EVERY
def test_more_classes_than_codes_are_refused_by_the_bits(name):
    if build(name).gallery_method().centers() is None:
        pytest.skip("this method has no centers")
    with pytest.raises(InputError) as caught:
        build_method(name, {}, task(bits=4, classes=100))
    assert caught.value.key == "bits"


def test_importing_methods_does_not_import_torch():
    modules = sorted({METHODS.origin(name) for name in NAMES})
    code = (
        f"import sys, {', '.join(modules)};"
        "assert not {'torch', 'timm', 'scipy', 'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- losses --------------------------------------------------------------------------


@EVERY
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_losses_are_finite_scalars_of_the_outputs_dtype(name, multi, dtype):
    method = build(name, multi=multi)
    data = batch(multi=multi, dtype=dtype)
    for term in losses(method, data, *outputs(dtype), state(method, dtype)).values():
        assert term.shape == ()
        assert term.dtype == dtype
        assert torch.isfinite(term)


@EVERY
@KINDS
def test_gradients_reach_what_they_should_and_nothing_else(name, multi):
    method = build(name, multi=multi)
    data = batch(multi=multi)
    h_q, h_g = (h.requires_grad_() for h in outputs())
    if method.schedule is Schedule.JOINT:
        sum(method.joint_loss(h_q, h_g, data, state(method)).values()).backward()
        assert h_q.grad.abs().sum() > 0
        assert h_g.grad.abs().sum() > 0
        return
    query = method.query_loss(h_q, codes(method, h_g).detach(), data, state(method))
    sum(query.values()).backward()
    assert torch.isfinite(h_q.grad).all()
    assert (h_q.grad.abs().sum(dim=1) > 0).all()
    assert h_g.grad is None
    if trains_a_gallery(method):
        h_q.grad = None
        sum(method.gallery_loss(h_g, data, state(method)).values()).backward()
        assert torch.isfinite(h_g.grad).all()
        assert (h_g.grad.abs().sum(dim=1) > 0).all()
        assert h_q.grad is None


@EVERY
@KINDS
def test_losses_do_not_depend_on_the_order_of_the_batch(name, multi):
    method = build(name, multi=multi)
    data, (h_q, h_g) = batch(multi=multi), outputs()
    order = torch.tensor(np.random.default_rng(0).permutation(N))
    shuffled = Batch(
        rows=data.rows[order],
        labels=data.labels[order],
        classes=None if data.classes is None else data.classes[order],
        tie_bits=data.tie_bits[order],
    )
    before = losses(method, data, h_q, h_g, state(method))
    after = losses(method, shuffled, h_q[order], h_g[order], state(method))
    assert before.keys() == after.keys()
    for term, value in before.items():
        assert float(after[term]) == pytest.approx(float(value), rel=1e-9, abs=1e-12)


@EVERY
@KINDS
def test_losses_are_finite_on_half_precision_outputs(name, multi):
    method = build(name, multi=multi)
    data = batch(multi=multi, dtype=torch.float32)
    h_q, h_g = outputs(torch.float32)
    for scale in (1e-4, 1.0, 100.0):
        rough_q, rough_g = ((h * scale).bfloat16().float().requires_grad_() for h in (h_q, h_g))
        terms = losses(method, data, rough_q, rough_g, state(method, torch.float32))
        sum(terms.values()).backward()
        assert all(torch.isfinite(term) for term in terms.values())
        assert torch.isfinite(rough_q.grad).all()


@EVERY
def test_losses_keep_no_state_between_calls(name):
    method = build(name)
    data, (h_q, h_g), kept = batch(multi=False), outputs(), state(method)
    before = {key: value.clone() for key, value in kept.items()}
    first = losses(method, data, h_q, h_g, kept)
    second = losses(method, data, h_q, h_g, kept)
    assert all(torch.equal(first[term], second[term]) for term in first)
    assert all(torch.equal(kept[key], value) for key, value in before.items())


@EVERY
@KINDS
def test_a_small_step_against_the_gradient_lowers_the_query_loss(name, multi):
    method = build(name, multi=multi)
    if method.schedule is Schedule.JOINT:
        pytest.skip("this method has no query stage")
    data, (h_q, h_g), kept = batch(multi=multi), outputs(), state(method)

    def total(h):
        return sum(method.query_loss(h, codes(method, h_g), data, kept).values())

    h_q.requires_grad_()
    loss = total(h_q)
    (gradient,) = torch.autograd.grad(loss, h_q)
    assert total(h_q.detach() - 1e-5 * gradient / gradient.norm()) < loss


@EVERY
def test_outputs_of_another_length_are_refused(name):
    method = build(name)
    _, h_g = outputs()
    with pytest.raises((ValueError, RuntimeError), match="5"):
        losses(method, batch(multi=False), torch.ones(N, 5, dtype=h_g.dtype), h_g, state(method))


@EVERY
@KINDS
def test_hyperparameters_move_only_the_stages_that_read_them(name, multi):
    params = METHODS.get(name).Params
    plain = build(name, multi=multi)
    for field, info in params.model_fields.items():
        for value in info.json_schema_extra["search"]:
            try:
                method = build(name, multi=multi, **{field: value})
            except InputError:
                continue  # not with the other defaults
            if Schedule.JOINT in (plain.schedule, method.schedule):
                continue  # one stage reads everything
            readers = params.readers(field)
            data, (h_q, h_g), kept = batch(multi=multi), outputs(), state(plain)
            if "gallery" not in readers and trains_a_gallery(plain):
                same_terms(
                    plain.gallery_loss(h_g, data, kept), method.gallery_loss(h_g, data, kept)
                )
            if "query" not in readers:
                assert method.recording == plain.recording
                same_terms(
                    plain.query_loss(h_q, codes(plain, h_g), data, kept),
                    method.query_loss(h_q, codes(method, h_g), data, kept),
                )
            if "centers" not in readers:
                assert method.centers() == plain.centers()


def same_terms(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


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
    method = build("third")
    assert isinstance(method, HashMethod)
    assert method.name == "third"
    assert plain.name == "l2"
    with pytest.raises(ImportError, match="not there"):
        METHODS.get("torn")
    assert set(NAMES) < set(METHODS.names())
