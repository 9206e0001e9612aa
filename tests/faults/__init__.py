"""Runs that are killed at every system call that changes a file, at drawn times, or by a full disk: `make faults`."""
