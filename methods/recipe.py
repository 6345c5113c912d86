"""How a side is trained: epochs, batches, optimiser, learning rates; declarations only."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Recipe(BaseModel):
    """Training recipe of one side; the defaults are those of the CSCH paper (section 4.3).

    The paper's learning rate is read as the backbone's, and the hash layer's is ten times that,
    as in its released code.

    Attributes:
        epochs: passes over the training split.
        batch_size: images in one optimiser step; the last, smaller batch of an epoch is dropped.
        optimizer: adam and sgd use coupled weight decay, adamw decoupled.
        lr_backbone: learning rate of the pretrained backbone, per step.
        lr_head: learning rate of the hash layer, per step.
        weight_decay: L2 coefficient.
        momentum: of sgd and rmsprop.
        schedule: "constant", or "cosine" from the full rate to 0 over all steps.
        warmup_epochs: linear ramp from 0, in epochs; fractions allowed.
        precision: of the backbone and head; losses are always computed in float32.
        clip_norm: largest global gradient norm; null leaves gradients as they are.
        workers: processes, each with a GPU of its own where there are any, that train the side
            together; each takes an equal part of every batch. The result is that of one worker
            but for rounding, which makes it part of what a trial is when it is above 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    epochs: int = Field(150, ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    lr_backbone: float = Field(1e-5, ge=0)
    lr_head: float = Field(1e-4, ge=0)
    weight_decay: float = Field(5e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: float | None = Field(None, gt=0)
    workers: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> Recipe:
        each, left = divmod(self.batch_size, self.workers)
        if self.workers > 1 and (left or each < 2):
            raise ValueError(
                "batch_size must be a multiple of workers, with at least 2 images for each: "
                f"batch_size is {self.batch_size} and workers is {self.workers}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_one_worker(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``workers: 1``, which is no setting: ids are those of one worker."""
        values: dict[str, Any] = handler(self)
        if self.workers == 1:
            values.pop("workers", None)
        return values

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor on both learning rates at a 0-based global step: a pure function."""
        total = self.epochs * steps_per_epoch
        warmup = self.warmup_epochs * steps_per_epoch
        if warmup and step < warmup:
            return (step + 1) / warmup if step + 1 < warmup else 1.0
        if self.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1.0, total - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
