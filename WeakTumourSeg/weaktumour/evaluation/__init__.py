"""Measuring: metrics against a known truth, other people's methods on the same data, seconds and memory."""
