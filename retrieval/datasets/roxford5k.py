"""roxford5k: buildings of Oxford, revisited; no labels, but ground truth for each query."""

from __future__ import annotations

from retrieval.datasets.base import DATASETS
from retrieval.datasets.landmarks import LandmarkDataset


@DATASETS.register("roxford5k")
class ROxford5k(LandmarkDataset):
    """The revisited Oxford benchmark: 70 queries, 4,993 gallery images, Easy, Medium and Hard.

    Ground truth says for each query which images show its landmark: easy, hard, junk. mAP (by the
    trapezoid rule, junk left out of the ranking) and mP@1, 5, 10 are given at each level; tables
    show Medium. Queries are cropped by their boxes. Ranking by Hamming distance is not part of the
    benchmark: its mAP is the expectation over the order of ties, with bounds beside it; the
    benchmark's own ranking, by cosine, is what ``evaluate: {retrieval: [cosine]}`` adds. Images
    are stored as squares of ``store_size``, up to 2,048 pixels, and encoded at one scale; the
    literature takes whole images whose longer side is 1,024 pixels, at several scales, so that
    its figures are not to be compared with these. Training images come from another dataset and
    are not in the gallery; validation queries are taken from them.
    """

    title = "ROxford5k"
    counts = (70, 4_993)
    what = "70 queries, 4,993 photographs of landmarks, ground truth by query; train on others"
    source = (
        "Radenovic et al., Revisiting Oxford and Paris, CVPR 2018; images of "
        "Philbin et al., Object Retrieval with Large Vocabularies, CVPR 2007"
    )
    obtain = (
        "unpack oxbuild_images.tgz of the Oxford Buildings dataset into ROOT/jpg, put "
        "gnd_roxford5k.pkl of the revisited annotation into ROOT, and give ROOT as root"
    )
