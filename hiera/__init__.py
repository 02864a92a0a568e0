"""Hiera, without FiftyOne: weights, preprocessing, encoder and pooling.

Nothing in this subpackage imports FiftyOne or the modules above it.
"""
