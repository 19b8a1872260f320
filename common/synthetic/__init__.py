"""Embedded corpora: speech and faces that are made by code, with ground truth and without a licence."""
