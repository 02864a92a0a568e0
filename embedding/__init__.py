"""From files to embeddings, without FiftyOne: loading, reading, pooling, provenance."""
