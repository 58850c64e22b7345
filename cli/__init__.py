"""The command line: one command a file, its tables and its progress."""
