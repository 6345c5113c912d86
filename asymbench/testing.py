"""What every method promises, as tests that any package can run on its own methods.

In a test module of yours:

    from asymbench.testing import MethodContract

    class TestYours(MethodContract):
        method = "yours"                  # the name that it is registered under
        params = {"weight": 2.0}          # optional: other than the defaults

pytest collects one test a promise. They need neither images nor a network: losses are evaluated on
drawn outputs, training runs on 40 small random images. Put
``pytest.register_assert_rewrite("asymbench.testing")`` into your ``conftest.py`` to see values in
failures.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.base import (
    METHODS,
    Batch,
    HashMethod,
    LossTerms,
    Schedule,
    State,
    Task,
    TrainedStage,
    TrainingSplit,
    build_method,
)
from methods.centers import make_centers
from methods.networks import HashNetwork, hash_head, parameter_groups
from methods.recipe import Recipe
from methods.training import Learner, LiveTeacher, Trainer, TrainingData, binarize, encode
from retrieval.augmentation import Augmentation, Views
from retrieval.errors import InputError
from retrieval.streams import torch_stream
from search_spaces.defaults import declared_range, read_with, space_of

__all__ = ["MethodContract", "Specimen"]

N, BITS, CLASSES, N_TRAIN = 8, 16, 5, 40
LATE = 1000
"""An epoch that lies behind every warm-up."""

_KINDS = pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
_TYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


@dataclass
class Specimen:
    """A method with everything that its losses read, drawn at random.

    Attributes:
        method: built for 5 classes, 16 bits and 40 training images.
        split: the training split's labels, and embeddings where the method reads them.
        batch: 8 of its images.
        h_q, h_g: (8, 16) outputs of the two networks, without gradient.
        state: the centers, and what the method keeps.
    """

    method: HashMethod
    split: TrainingSplit
    batch: Batch
    h_q: Tensor
    h_g: Tensor
    state: State

    @classmethod
    def draw(
        cls,
        method: HashMethod,
        *,
        dtype: torch.dtype = torch.float64,
        epoch: int = 0,
        rows: NDArray[np.int64] | None = None,
    ) -> Specimen:
        """Draw outputs, labels and state; the same arguments give the same values."""
        rng = np.random.default_rng(3)
        multi = method.task.multi_label
        every = _labels(multi, rng)
        classes = None if multi else torch.from_numpy(every.argmax(axis=1))
        embeddings = rng.normal(size=(N_TRAIN, BITS)).astype(np.float32)
        ties = torch.from_numpy(rng.choice([-1.0, 1.0], (N_TRAIN, BITS)))
        outputs = rng.normal(size=(2, N_TRAIN, BITS))
        split = TrainingSplit(
            labels=torch.from_numpy(every.astype(np.float32)),
            classes=classes,
            seed=7,
            embeddings=torch.from_numpy(embeddings) if method.reads_embeddings else None,
        )
        chosen = np.arange(N) * 3 if rows is None else rows
        index = torch.from_numpy(chosen)
        batch = Batch(
            rows=index,
            labels=torch.from_numpy(every[chosen]).to(dtype),
            classes=None if classes is None else classes[index],
            tie_bits=ties[index].to(dtype),
            epoch=epoch,
        )
        h_q, h_g = (torch.from_numpy(h[chosen]).to(dtype) for h in outputs)
        found = cls(method, split, batch, h_q, h_g, {})
        found.state = found._initial_state()
        found.remember()
        return found

    @property
    def joint(self) -> bool:
        """Whether both networks train in one stage."""
        return self.method.schedule is Schedule.JOINT

    @property
    def owners(self) -> dict[TrainedStage, HashMethod]:
        """The stages that the method's trial trains, and the method of each."""
        if self.joint:
            return {"joint": self.method}
        return {"gallery": self.method.gallery_method(), "query": self.method}

    @property
    def trains_a_gallery(self) -> bool:
        """Whether the gallery's stage is the method's own."""
        return self.method.gallery_method() is self.method and not self.joint

    def _initial_state(self) -> State:
        state = _centers(self.method)
        for stage, owner in self.owners.items():
            state |= owner.initial_state(stage, self.split)
        for owner in self.owners.values():
            owner.begin_epoch(self.batch.epoch, self.split, state)
        return state

    def remember(self) -> None:
        """Let the method keep the outputs of the batch."""
        outputs = {"query": self.h_q, "gallery": self.h_g}
        averaged = {"momentum": self.h_g.flip(0)}  # anything but the network's own outputs
        for stage, owner in self.owners.items():
            for phase in owner.phases if self.joint else ("both",):
                given = replace(self.batch, phase=phase)
                shown = outputs | (averaged if owner.momentum is not None else {})
                owner.remember(stage, shown, given, self.state)

    def codes(self, h_g: Tensor) -> Tensor:
        """Return what the method's query sees of the gallery's outputs (n, B)."""
        return binarize(h_g) if self.method.recording == "sign" else h_g.detach()

    def losses(self, h_q: Tensor | None = None, h_g: Tensor | None = None) -> LossTerms:
        """Return the terms of all stages and phases, by stage, phase and name."""
        h_q = self.h_q if h_q is None else h_q
        h_g = self.h_g if h_g is None else h_g
        terms: LossTerms = {}
        if self.joint:
            for phase in self.method.phases:
                batch = replace(self.batch, phase=phase)
                q = h_q if phase in ("both", "query") else h_q.detach()
                g = h_g if phase in ("both", "gallery") else h_g.detach()
                found = self.method.joint_terms(q, g, batch, self.state)
                terms |= {f"{phase} {name}": value for name, value in found.items()}
            return terms
        found = self.method.query_terms(h_q, self.codes(h_g), self.batch, self.state)
        terms |= {f"query {name}": value for name, value in found.items()}
        if self.trains_a_gallery:
            found = self.method.gallery_loss(h_g, self.batch, self.state)
            terms |= {f"gallery {name}": value for name, value in found.items()}
        return terms

    def reordered(self, order: Tensor) -> Specimen:
        """Return the same batch in another order."""
        batch = replace(
            self.batch,
            rows=self.batch.rows[order],
            labels=self.batch.labels[order],
            classes=None if self.batch.classes is None else self.batch.classes[order],
            tie_bits=self.batch.tie_bits[order],
        )
        return Specimen(
            self.method, self.split, batch, self.h_q[order], self.h_g[order], self.state
        )


def _centers(method: HashMethod) -> State:
    """Return what the centers' stage gives to the method: its hash centers, if it has any."""
    spec = method.gallery_method().centers()
    if spec is None:
        return {}
    codes, _ = make_centers(CLASSES, BITS, spec, 0)
    return {"centers": torch.from_numpy(codes.astype(np.float32))}


def _labels(multi: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    classes = rng.permutation(np.arange(N_TRAIN) % CLASSES)
    labels: NDArray[np.float64] = np.eye(CLASSES)[classes]
    if multi:
        labels = np.maximum(labels, rng.integers(0, 2, labels.shape))
        labels[np.arange(N_TRAIN), (classes + 1) % CLASSES] = 0  # none has every class
    return labels


def _total(terms: LossTerms) -> Tensor:
    return torch.stack(list(terms.values())).sum()


class MethodContract:
    """The promises; see the module's docstring.

    Class attributes:
        method: the registered name.
        params: hyperparameters other than the defaults.
    """

    method: ClassVar[str]
    params: ClassVar[dict[str, Any]] = {}

    # ---- helpers -------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @staticmethod
    def task(*, multi: bool = False, bits: int = BITS, classes: int = CLASSES) -> Task:
        """Return what methods are asked to do here."""
        return Task(bits=bits, n_classes=classes, n_train=N_TRAIN, multi_label=multi)

    def build(self, *, multi: bool = False, **params: Any) -> HashMethod:
        """Build the method."""
        return build_method(self.method, {**self.params, **params}, self.task(multi=multi))

    @property
    def cls(self) -> type[HashMethod]:
        """The method's class."""
        return METHODS.get(self.method)

    # ---- declarations --------------------------------------------------------------------

    def test_source_says_which_paper_and_where_the_defaults_are_from(self) -> None:
        """A reader can find the equations, and knows how much of them is known."""
        source = self.cls.source
        assert source.title
        assert source.venue
        assert 2000 < source.year < 2100
        assert source.settings_from
        assert source.status in ("published", "reconstructed")
        if source.status == "reconstructed":
            assert source.note, "say what was reconstructed"
        assert self.cls.__doc__
        assert self.cls.version >= 1

    @_KINDS
    def test_defaults_build_and_describe_themselves(self, multi: bool) -> None:
        """The method can be built without a hyperparameter, and listed."""
        method = self.build(multi=multi)
        shown = method.describe()
        assert shown["name"] == self.method == method.name
        json.dumps(shown)
        assert method.head in ("fc_bn", "fc_tanh", "fc_bn_tanh", "mlp3_tanh")
        assert isinstance(method.schedule, Schedule)
        teacher = method.gallery_method()
        assert teacher.gallery_method() is teacher
        assert method.head == teacher.head
        if method.schedule is not Schedule.FROZEN:
            assert not method.reads_embeddings
        if method.schedule is not Schedule.JOINT:
            assert method.phases == ("both",)

    def test_hyperparameters_survive_json(self) -> None:
        """What MLflow and manifests keep builds the same method."""
        params = self.cls.Params.parse(self.params)
        text = json.dumps(params.model_dump(mode="json"))
        assert type(params).parse(json.loads(text)) == params

    def test_hyperparameters_declare_readers_meaning_and_valid_search_values(self) -> None:
        """Every hyperparameter says what it is and which stages it moves."""
        params = self.cls.Params
        for field, info in params.model_fields.items():
            assert set(params.readers(field)) <= {"centers", "gallery", "query"}, field
            assert info.description, field
            extra = info.json_schema_extra
            assert isinstance(extra, dict)
            search = extra["search"]
            assert isinstance(search, list)
            for value in search:
                assert getattr(params.parse({field: value}), field) == value, field

    def test_ranges_say_where_they_are_from_and_hold_the_default(self) -> None:
        """A range that tuning searches is valid, has a source, and begins at what is published."""
        params = self.cls.Params
        for field, info in params.model_fields.items():
            given = declared_range(params, field)
            if given is None:
                continue
            assert given["source"].strip(), (
                f"{field} has values worth trying, and no range_from: say in one line where they "
                "are from, as in range_from='table 3 of the paper' or 'ours: a decade around it'"
            )
            for parent, values in read_with(params, field).items():
                assert parent in params.model_fields, f"{field}: when names no hyperparameter"
                for value in values:
                    params.parse({parent: value})
            space = space_of(self.method, {field: given}, pairs=())
            default = info.get_default(call_default_factory=True)
            assert space.dimensions[field].has(default), (
                f"the default of {field}, {default!r}, is not in its range {given}: tuning and "
                "sensitivity begin there"
            )
            assert list(space.grid()), field  # a design can take the range as it is

    def test_unknown_hyperparameters_are_refused_by_name(self) -> None:
        """A misspelt key is an error with the nearest name, not a silent default."""
        field = list(self.cls.Params.model_fields)[-1]
        with pytest.raises(InputError, match=f"did you mean '{field}'") as caught:
            self.cls.Params.parse({field + "x": 1})
        assert caught.value.key == field + "x"

    def test_hyperparameters_out_of_range_are_refused_by_name(self) -> None:
        """Wrong types, NaN and values beyond the limits name the key."""
        params = self.cls.Params
        for field, info in params.model_fields.items():
            wrong: list[Any] = [object()]
            for limit in info.metadata:
                for attribute, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
                    bound = getattr(limit, attribute, None)
                    if bound is not None:
                        wrong.append(type(bound)(bound + step))
            arms = [info.annotation, *typing.get_args(info.annotation)]
            if typing.get_origin(info.annotation) is Literal:
                wrong.append("no such option")
            if float in arms:
                wrong += ["0.5", float("nan"), float("inf")]
                limited = info.metadata or "gt" in repr(info) or "ge" in repr(info)
                assert limited, f"{self.method}.{field} has no range"
            for value in wrong:
                with pytest.raises(InputError) as caught:
                    params.parse({field: value})
                assert (caught.value.key or "").split(".")[0] == field

    def test_more_classes_than_codes_are_refused_by_the_bits(self) -> None:
        """Impossible centers are found before anything runs."""
        if self.build().gallery_method().centers() is None:
            pytest.skip("this method has no centers")
        with pytest.raises(InputError) as caught:
            build_method(self.method, self.params, self.task(bits=4, classes=100))
        assert caught.value.key == "bits"

    # ---- losses --------------------------------------------------------------------------

    @_KINDS
    @_TYPES
    @pytest.mark.parametrize("epoch", [0, LATE])
    def test_losses_are_finite_scalars_of_the_outputs_dtype(
        self, multi: bool, dtype: torch.dtype, epoch: int
    ) -> None:
        """In float32 and float64, from the first epoch to a late one."""
        found = Specimen.draw(self.build(multi=multi), dtype=dtype, epoch=epoch)
        terms = found.losses()
        assert terms
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.dtype == dtype, name
            assert torch.isfinite(term), name

    @_KINDS
    def test_gradients_reach_what_they_should_and_nothing_else(self, multi: bool) -> None:
        """A query's loss never moves the gallery, unless the method trains both together."""
        found = Specimen.draw(self.build(multi=multi))
        method = found.method
        if found.joint:
            for phase in method.phases:
                h_q, h_g = (h.clone().requires_grad_() for h in (found.h_q, found.h_g))
                batch = replace(found.batch, phase=phase)
                q = h_q if phase in ("both", "query") else h_q.detach()
                g = h_g if phase in ("both", "gallery") else h_g.detach()
                _total(method.joint_terms(q, g, batch, found.state)).backward()  # type: ignore[no-untyped-call]
                for h, reached in (
                    (h_q, phase in ("both", "query")),
                    (h_g, phase in ("both", "gallery")),
                ):
                    assert (h.grad is not None) is reached
                    if h.grad is not None:
                        assert torch.isfinite(h.grad).all()
                        assert (h.grad.abs().sum(dim=1) > 0).all()
            return
        h_q, h_g = (h.clone().requires_grad_() for h in (found.h_q, found.h_g))
        terms = method.query_terms(h_q, found.codes(h_g), found.batch, found.state)
        _total(terms).backward()  # type: ignore[no-untyped-call]
        assert h_q.grad is not None
        assert torch.isfinite(h_q.grad).all()
        assert (h_q.grad.abs().sum(dim=1) > 0).all()
        assert h_g.grad is None
        if found.trains_a_gallery:
            h_q.grad = None
            _total(method.gallery_loss(h_g, found.batch, found.state)).backward()  # type: ignore[no-untyped-call]
            assert h_g.grad is not None
            assert torch.isfinite(h_g.grad).all()
            assert (h_g.grad.abs().sum(dim=1) > 0).all()
            assert h_q.grad is None

    @_KINDS
    @pytest.mark.parametrize("epoch", [0, LATE])
    def test_losses_do_not_depend_on_the_order_of_the_batch(self, multi: bool, epoch: int) -> None:
        """A batch is a set."""
        found = Specimen.draw(self.build(multi=multi), epoch=epoch)
        order = torch.from_numpy(np.random.default_rng(0).permutation(N))
        before, after = found.losses(), found.reordered(order).losses()
        assert before.keys() == after.keys()
        for term, value in before.items():
            assert float(after[term]) == pytest.approx(float(value), rel=1e-9, abs=1e-12), term

    @_KINDS
    @pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
    def test_losses_are_finite_on_half_precision_outputs(self, multi: bool, scale: float) -> None:
        """What a backbone in bf16 gives, collapsed or saturated."""
        found = Specimen.draw(self.build(multi=multi), dtype=torch.float32, epoch=LATE)
        found.h_q, found.h_g = (
            (h * scale).bfloat16().float().requires_grad_() for h in (found.h_q, found.h_g)
        )
        terms = found.losses()
        _total(terms).backward()  # type: ignore[no-untyped-call]
        assert all(torch.isfinite(term) for term in terms.values())
        assert found.h_q.grad is not None
        assert torch.isfinite(found.h_q.grad).all()

    @_KINDS
    @pytest.mark.parametrize("what", ["one image", "one class", "equal images", "zero outputs"])
    def test_degenerate_batches_give_a_value_or_a_clear_error(
        self, multi: bool, what: str
    ) -> None:
        """Never NaN, and never an error from the inside of a library."""
        method = self.build(multi=multi)
        rows = np.arange(N)
        if what == "one image":
            rows = rows[:1]
        found = Specimen.draw(method, rows=rows, epoch=LATE)
        if what == "one class":
            row = found.batch.labels[:1].expand(N, -1)
            same = None if found.batch.classes is None else found.batch.classes[:1].expand(N)
            found.batch = replace(found.batch, labels=row, classes=same)
        elif what == "equal images":
            found.h_q, found.h_g = (h[:1].expand(N, -1).clone() for h in (found.h_q, found.h_g))
        elif what == "zero outputs":
            found.h_q, found.h_g = torch.zeros_like(found.h_q), torch.zeros_like(found.h_g)
        found.h_q, found.h_g = found.h_q.requires_grad_(), found.h_g.requires_grad_()
        try:
            terms = found.losses()
        except ValueError as error:
            assert len(str(error)) > 10, "say what is wrong with the batch"
            assert "batch" in str(error) or "image" in str(error)
            return
        total = _total(terms)
        assert torch.isfinite(total)
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
            for h in (found.h_q, found.h_g):
                assert h.grad is None or torch.isfinite(h.grad).all()

    def test_losses_keep_no_state_between_calls(self) -> None:
        """State changes in the hooks only, which a resumed run repeats."""
        found = Specimen.draw(self.build(), epoch=LATE)
        before = {key: value.clone() for key, value in found.state.items()}
        first, second = found.losses(), found.losses()
        assert all(torch.equal(first[term], second[term]) for term in first)
        assert found.state.keys() == before.keys()
        assert all(torch.equal(found.state[key], value) for key, value in before.items())

    @_KINDS
    def test_state_is_a_function_of_the_split_alone(self, multi: bool) -> None:
        """A stage that goes on from a checkpoint makes it anew."""
        with torch.random.fork_rng():
            one = Specimen.draw(self.build(multi=multi)).state
            torch.manual_seed(5)
            np.random.seed(5)  # noqa: NPY002 - whatever a careless neighbour does
            other = Specimen.draw(self.build(multi=multi)).state
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)

    @_KINDS
    def test_a_small_step_against_the_gradient_lowers_the_loss(self, multi: bool) -> None:
        """The gradient is the loss' own."""
        found = Specimen.draw(self.build(multi=multi), epoch=LATE)
        stages = found.method.phases if found.joint else ("query",)
        for stage in stages:
            batch = replace(found.batch, phase=stage) if found.joint else found.batch

            def total(h: Tensor, stage: str = stage, batch: Batch = batch) -> Tensor:
                if not found.joint:
                    codes = found.codes(found.h_g)
                    return _total(found.method.query_terms(h, codes, batch, found.state))
                pair = (found.h_q, h) if stage == "gallery" else (h, found.h_g)
                return _total(found.method.joint_terms(*pair, batch, found.state))

            h = (found.h_g if stage == "gallery" else found.h_q).clone().requires_grad_()
            loss = total(h)
            (gradient,) = torch.autograd.grad(loss, h)
            if not found.method.straight_through:
                assert total(h.detach() - 1e-5 * gradient / gradient.norm()) < loss

    def test_outputs_of_another_length_are_refused(self) -> None:
        """Codes of different lengths never mix by broadcasting."""
        found = Specimen.draw(self.build())
        short = torch.ones(N, 5, dtype=found.h_q.dtype)
        with pytest.raises((ValueError, RuntimeError), match="5"):
            found.losses(h_q=short)

    @_KINDS
    def test_hyperparameters_move_only_the_stages_that_read_them(self, multi: bool) -> None:
        """What decides which stages are shared is true."""
        params = self.cls.Params
        plain = Specimen.draw(self.build(multi=multi))
        for field, info in params.model_fields.items():
            extra = info.json_schema_extra
            assert isinstance(extra, dict)
            search = extra["search"]
            assert isinstance(search, list)
            for value in search:
                try:
                    other = Specimen.draw(self.build(multi=multi, **{field: value}))
                except InputError:
                    continue  # not with the other values
                if plain.joint or other.joint:
                    continue  # one stage reads everything
                readers = params.readers(field)
                if "gallery" not in readers and plain.trains_a_gallery:
                    _same_terms(
                        plain.method.gallery_loss(plain.h_g, plain.batch, plain.state),
                        other.method.gallery_loss(plain.h_g, plain.batch, plain.state),
                        field,
                    )
                if "query" not in readers:
                    assert other.method.recording == plain.method.recording, field
                    codes = plain.codes(plain.h_g)
                    _same_terms(
                        plain.method.query_loss(plain.h_q, codes, plain.batch, plain.state),
                        other.method.query_loss(plain.h_q, codes, plain.batch, plain.state),
                        field,
                    )
                if "centers" not in readers:
                    assert other.method.centers() == plain.method.centers(), field

    @_KINDS
    @pytest.mark.parametrize("mode", ["add", "replace"])
    def test_a_quantizer_plugs_in(self, multi: bool, mode: str) -> None:
        """CAQ joins the query's terms, with the weight that it was given."""
        cls, given = self.cls, {"name": "caq", "mode": mode, "weight": 0.5}
        try:
            method = self.build(multi=multi, quantizer=given)
        except InputError as error:
            assert (error.key or "").startswith("quantizer")
            if mode == "replace" and not cls.quantization_weights:
                assert error.key == "quantizer.mode"
            else:
                assert error.hint, "say what to do instead"
            return
        if mode == "replace":
            weights = method.params.model_dump()
            assert all(weights[name] == 0 for name in cls.quantization_weights)
        found = Specimen.draw(method)
        found.h_q = found.h_q.requires_grad_()
        terms = found.losses()
        (name,) = (name for name in terms if name.split()[-1] == "caq")
        (gradient,) = torch.autograd.grad(terms[name], found.h_q)
        assert torch.isfinite(gradient).all()
        doubled = self.build(multi=multi, quantizer={**given, "weight": 1.0})
        twice = Specimen.draw(doubled).losses()[name]
        assert twice.item() == pytest.approx(2 * terms[name].item(), rel=1e-9)

    # ---- training ------------------------------------------------------------------------

    @_KINDS
    def test_training_resumed_after_any_epoch_ends_with_the_same_bits(self, multi: bool) -> None:
        """Networks, optimisers, memory and the losses that were reported."""
        lab = _Lab(self.build(multi=multi))
        for stage in lab.stages:
            whole = lab.trainer(stage)
            reports = [report.metrics for report in whole.run()]
            for stop in range(1, lab.recipe.epochs):
                first = lab.trainer(stage)
                steps = first.run()
                told = [next(steps).metrics for _ in range(stop)]
                saved = {k: v.clone().contiguous() for k, v in first.tensors().items()}
                second = lab.trainer(stage)
                second.load(saved, stop)
                told += [report.metrics for report in second.run()]
                assert told == reports, f"{stage} stopped after {stop}"
                _same_tensors(whole.tensors(), second.tensors())

    def test_a_query_on_recorded_codes_ends_with_the_bits_of_live_training(self) -> None:
        """Whether its gallery trains beside it, answers live, or was recorded."""
        lab = _Lab(self.build())
        if "query" not in lab.stages:
            pytest.skip("this method trains both networks in one stage")
        replayed = lab.trainer("query")
        for _ in replayed.run():
            pass
        live = lab.live()
        for _ in live.run():
            pass
        assert replayed.query is not None
        assert live.query is not None
        _same_tensors(replayed.query.tensors(), live.query.tensors())

    @_KINDS
    def test_training_under_bf16_autocast_is_finite(self, multi: bool) -> None:
        """Networks in reduced precision, losses and memory in float32."""
        lab = _Lab(self.build(multi=multi), precision="bf16")
        for stage in lab.stages:
            trainer = lab.trainer(stage)
            for report in trainer.run():  # raises where a loss is not finite
                assert report.metrics
            for name, value in trainer.tensors().items():
                assert torch.isfinite(value.float()).all(), name

    def test_training_moves_the_networks_that_it_should(self) -> None:
        """Each stage's own network, and no other."""
        lab = _Lab(self.build())
        for stage in lab.stages:
            trainer = lab.trainer(stage)
            before = {
                learner.side: {k: v.clone() for k, v in learner.network.named_parameters()}
                for learner in trainer.learners
            }
            assert set(before) == ({"query", "gallery"} if stage == "joint" else {stage})
            teacher = {k: v.clone() for k, v in lab.teacher().state_dict().items()}
            for _ in trainer.run():
                pass
            for learner in trainer.learners:
                after = dict(learner.network.named_parameters())
                assert any((after[k] != v).any() for k, v in before[learner.side].items())
            if stage == "query":
                _same_tensors(lab.teacher().state_dict(), teacher)


def _same_terms(a: LossTerms, b: LossTerms, field: str) -> None:
    assert a.keys() == b.keys(), field
    assert all(torch.equal(a[key], b[key]) for key in a), field


def _same_tensors(a: typing.Mapping[str, Tensor], b: typing.Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


class _Record:
    """A recording in memory: sink and source."""

    def __init__(self, kind: Literal["sign", "float"]) -> None:
        self.kind = kind
        self._epochs: list[Tensor] = []

    def begin(self, epoch: int) -> None:
        self._epochs[epoch:] = [torch.zeros(N_TRAIN, BITS)]

    def write(self, positions: NDArray[np.int64], h_g: Tensor) -> None:
        self._epochs[-1][torch.from_numpy(positions)] = h_g

    def end(self, epoch: int) -> None:
        pass

    def codes(self, epoch: int, positions: NDArray[np.int64], views: Tensor) -> Tensor:
        rows = self._epochs[epoch][torch.from_numpy(positions)]
        return binarize(rows) if self.kind == "sign" else rows


class _Lab:
    """Trains a method's stages on random images with networks of a few hundred weights."""

    def __init__(self, method: HashMethod, *, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.method = method
        self.recipe = Recipe(
            epochs=3, batch_size=16, lr_backbone=1e-2, lr_head=1e-2, precision=precision
        )
        rng = np.random.default_rng(11)
        labels = _labels(method.task.multi_label, rng)
        images = rng.integers(0, 256, (N_TRAIN, 8, 8, 3), dtype=np.uint8)
        self.views = Views(images, 8, Augmentation(), 0)
        self.data = TrainingData(
            self.views,
            np.arange(N_TRAIN),
            labels.astype(np.uint8) if method.task.multi_label else labels.argmax(axis=1),
            n_classes=CLASSES,
            bits=BITS,
            seed=0,
        )
        self._teacher: HashNetwork | None = None
        self._record: _Record | None = None

    @property
    def stages(self) -> list[TrainedStage]:
        if self.method.schedule is Schedule.JOINT:
            return ["joint"]
        own = self.method.gallery_method() is self.method
        return ["gallery", "query"] if own else ["query"]

    def network(self, side: Literal["query", "gallery"]) -> HashNetwork:
        width = {"query": 6, "gallery": 8}[side]
        with torch_stream(0, side, "init"):
            backbone = nn.Sequential(
                nn.Conv2d(3, width, 3, stride=2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.2),
            )
            head = hash_head(self.method.head, width, BITS)
        grey = (0.5, 0.5, 0.5)
        return HashNetwork(backbone, head, grey, grey, 8).train()

    def learner(self, side: Literal["query", "gallery"], momentum: float | None) -> Learner:
        network = self.network(side)
        return Learner(
            side,
            network,
            parameter_groups(network),
            self.recipe,
            steps_per_epoch=self.data.steps(self.recipe.batch_size),
            seed=0,
            momentum=momentum,
        )

    def _train_teacher(self) -> None:
        owner = self.method.gallery_method()
        simultaneous = self.method.schedule is Schedule.SIMULTANEOUS
        record = _Record(self.method.recording)
        trainer = Trainer(
            owner,
            self.data,
            gallery=self.learner("gallery", owner.momentum),
            sink=record if simultaneous else None,
            state=_centers(self.method),
        )
        for _ in trainer.run():
            pass
        assert trainer.gallery is not None
        network = trainer.gallery.network
        assert isinstance(network, HashNetwork)
        self._teacher = network
        if not simultaneous:
            live = LiveTeacher(network, "float")
            for epoch in range(self.recipe.epochs):
                record.begin(epoch)
                for positions in self.data.batches(epoch, self.recipe.batch_size):
                    views = self.data.view(positions, epoch)
                    record.write(positions, live.codes(epoch, positions, views))
        self._record = record

    def teacher(self) -> HashNetwork:
        if self.method.schedule is Schedule.JOINT:
            return self.network("gallery")
        if self._teacher is None:
            self._train_teacher()
        assert self._teacher is not None
        return self._teacher

    def embeddings(self) -> NDArray[np.float32] | None:
        if not self.method.reads_embeddings:
            return None
        return encode(self.teacher(), self.views, np.arange(N_TRAIN))

    def trainer(self, stage: TrainedStage) -> Trainer:
        owner = self.method.gallery_method()
        if stage == "gallery":
            learner = self.learner("gallery", owner.momentum)
            return Trainer(owner, self.data, gallery=learner, state=_centers(self.method))
        if stage == "joint":
            return Trainer(
                self.method,
                self.data,
                query=self.learner("query", None),
                gallery=self.learner("gallery", self.method.momentum),
                state=_centers(self.method),
            )
        self.teacher()
        assert self._record is not None
        return Trainer(
            self.method,
            self.data,
            query=self.learner("query", None),
            source=self._record,
            state=_centers(self.method),
            embeddings=self.embeddings(),
        )

    def live(self) -> Trainer:
        query = self.learner("query", None)
        if self.method.schedule is Schedule.SIMULTANEOUS:
            gallery = self.learner("gallery", self.method.momentum)
            return Trainer(
                self.method, self.data, query=query, gallery=gallery, state=_centers(self.method)
            )
        source = LiveTeacher(self.teacher(), self.method.recording)
        return Trainer(
            self.method,
            self.data,
            query=query,
            source=source,
            state=_centers(self.method),
            embeddings=self.embeddings(),
        )
