"""Clients of data providers: one file each, which owns the provider's addresses, formats and error language."""
