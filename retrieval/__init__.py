"""The retrieval task: datasets, protocols, images, codes, ranking and metrics."""
