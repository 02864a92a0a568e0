"""From an image file to upright RGB to a uint8 tensor. No FiftyOne here."""
