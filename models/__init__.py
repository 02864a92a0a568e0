"""The FiftyOne models and what their data loaders read."""
