"""Datasets, one file each, and how a study opens them."""

from retrieval.datasets.base import DATASETS, SHORTHANDS, Dataset, DatasetIndex, open_dataset

__all__ = ["DATASETS", "SHORTHANDS", "Dataset", "DatasetIndex", "open_dataset"]
