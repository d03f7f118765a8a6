"""Compiled scalar physics and the loops over it: no I/O, no strings, no exceptions."""
