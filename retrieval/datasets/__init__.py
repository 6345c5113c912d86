"""Datasets, one file each, and how a study opens them."""

from retrieval.datasets.base import DATASETS, Dataset, DatasetIndex, open_dataset

__all__ = ["DATASETS", "Dataset", "DatasetIndex", "open_dataset"]
