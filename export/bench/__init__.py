"""`knobcast bench`: how fast a variant is, beside PyTorch and transformers' own exporter on the same weights.

Every contestant is a process of its own (`worker.py`), so that no memory hides in another's; rounds interleave them, so
that a noisy machine hits all alike; all get the same token ids and make the same number of steps. Not the project's own
bars: those are `make bench`.
"""
