"""The layers around a scanner, one machine per file (the breaker has a room); `core.stack` puts them in order."""
