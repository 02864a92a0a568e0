"""Embedding runs: what to embed, reading ahead, writing, provenance."""
