"""Hiera itself: weights, backbone, engines, pooling and heads. No FiftyOne here."""
