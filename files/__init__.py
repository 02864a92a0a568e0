"""Embed the files of a manifest into Parquet files, without FiftyOne."""
