"""Decode, check and preprocess images. Nothing here imports FiftyOne."""
