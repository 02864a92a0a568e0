"""The FiftyOne models, and the datasets that their data loaders read."""
