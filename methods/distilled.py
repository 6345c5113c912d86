"""Distillation: a query learns from the frozen gallery of any method, without its labels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from methods.base import (
    METHODS,
    HashMethod,
    HeadKind,
    Hyperparameters,
    Schedule,
    hyperparameter,
)
from methods.tensors import Tensor
from retrieval.errors import InputError


class DistilledParams(Hyperparameters):
    """Base of the hyperparameters of methods that distil another method's gallery."""

    teacher: str = hyperparameter(
        "orthohash",
        reads=("gallery",),
        doc="the method that trains the gallery; the stage is shared with its own trials",
    )
    teacher_params: dict[str, Any] = hyperparameter(
        {}, reads=("gallery",), doc="its hyperparameters, where they are not the defaults"
    )


class Distilled(HashMethod):
    """Base of methods whose query learns from the frozen gallery of another method.

    The head and the output space (raw, or tanh) are the teacher's, so that its gallery's codes and
    the query's are of one kind.
    """

    labels_needed = False
    heads = ("the teacher's",)
    params: DistilledParams

    @cached_property
    def teacher(self) -> HashMethod:
        """The method that trains the gallery.

        Raises:
            UnknownNameError: no such method; ``key`` is "teacher".
            InputError: it trains no gallery that could be frozen, or ``teacher_params`` is wrong.
        """
        name, given = self.params.teacher, self.params.teacher_params
        try:
            cls = METHODS.get(name)
        except InputError as error:
            raise error.located(prefix="teacher") from None
        if cls.gallery_loss is HashMethod.gallery_loss:
            raise InputError(
                f"method {name!r} trains no gallery of its own that could be distilled",
                key="teacher",
                value=name,
                hint="name a method that learns from labels, for instance orthohash, csq or csch",
            )
        try:
            params = cls.Params.parse(given)
        except InputError as error:
            raise error.located(prefix="teacher_params") from None
        teacher = cls(params, self.task)
        if teacher.schedule is Schedule.JOINT:
            raise InputError(
                f"method {name!r} with these teacher_params trains both networks together, so it "
                "has no gallery that could be trained first and frozen",
                key="teacher",
                value=name,
            )
        for key in given:
            if not {"centers", "gallery"} & set(cls.Params.readers(key)):
                raise InputError(
                    f"only the query of method {name!r} reads {key!r}, so it changes nothing",
                    key=f"teacher_params.{key}",
                    value=given[key],
                    hint="remove it",
                )
        return teacher

    @property
    def head(self) -> HeadKind:
        """The teacher's."""
        return self.teacher.head

    def gallery_method(self) -> HashMethod:
        """The teacher, whose trials share the gallery's stage."""
        return self.teacher

    def squash(self, h: Tensor) -> Tensor:
        """Return h (n, B) in the teacher's output space."""
        return self.teacher.squash(h)

    def check(self) -> None:
        """Refuse a teacher that cannot teach, and what the teacher itself refuses."""
        teacher = self.teacher
        try:
            teacher.check()
        except InputError as error:
            if error.key != "bits":
                error.located(prefix="teacher_params")
            raise
