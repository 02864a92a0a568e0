"""Similarity indexes of FiftyOne's brain, and the tables of vectors behind them.

The brain's classes make an index and search it. Their tables are written by the client of
each database, as the classes' own way takes up to 25 times as long (docs/indexes.md).
"""
