"""The layers around a scanner, one machine a file; none knows another, `stack` puts them in order."""
