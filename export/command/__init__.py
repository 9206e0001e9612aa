"""The command line: a module per verb that a user types, and what they print."""
