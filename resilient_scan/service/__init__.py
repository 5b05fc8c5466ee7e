"""What this package serves over HTTP, and nothing else in it does."""
