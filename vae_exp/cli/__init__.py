"""The command lines, and the only files that print for people."""
