"""Clients of data providers: one file for each provider's addresses, formats and error messages."""
