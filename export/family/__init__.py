"""Families: a graph per setting over one set of weights, each proven."""
