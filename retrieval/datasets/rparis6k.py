"""rparis6k: buildings of Paris, revisited; no labels, but ground truth for each query."""

from __future__ import annotations

from retrieval.datasets.base import DATASETS
from retrieval.datasets.landmarks import LandmarkDataset


@DATASETS.register("rparis6k")
class RParis6k(LandmarkDataset):
    """The revisited Paris benchmark: 70 queries, 6,322 gallery images, Easy, Medium and Hard.

    All else is as in ``roxford5k``.
    """

    title = "RParis6k"
    counts = (70, 6_322)
    what = "70 queries, 6,322 photographs of landmarks, ground truth by query; train on others"
    source = (
        "Radenovic et al., Revisiting Oxford and Paris, CVPR 2018; images of "
        "Philbin et al., Lost in Quantization, CVPR 2008"
    )
    obtain = (
        "unpack paris_1.tgz and paris_2.tgz of the Paris dataset into ROOT/jpg, put "
        "gnd_rparis6k.pkl of the revisited annotation into ROOT, and give ROOT as root"
    )
