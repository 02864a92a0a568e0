"""From a manifest of files to Parquet files of embeddings, without FiftyOne."""
