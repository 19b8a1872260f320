"""Metrics, one file per family; each result names its extractor and the number of samples behind it."""
