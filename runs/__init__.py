"""Embed samples: list what is pending, embed it, store it, and keep its index."""
