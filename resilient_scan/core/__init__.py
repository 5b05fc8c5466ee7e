"""The way of one scan."""
