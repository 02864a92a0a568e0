"""The version of this package, which provenance records."""

VERSION = "0.2.0"
