"""Embed on Ray: tasks read files, actors hold the encoder, the driver gets results."""
