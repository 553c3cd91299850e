"""The command line, one light module a command group."""
