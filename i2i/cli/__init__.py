"""Command lines: arguments in, printing out; what they do is in the other packages."""
