"""The command line: commands, where candidates are read from, what is printed."""
