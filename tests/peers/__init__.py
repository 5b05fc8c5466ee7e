"""The same faults for this library and for what else there is; `python -m tests.peers` measures and publishes them."""
