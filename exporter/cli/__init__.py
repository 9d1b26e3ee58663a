"""The command line: the only place that prints. One module per command, thin shells over the library."""
