"""A variant laid out for one runtime's own conventions of names and places; `knobcast layout DIR --for RUNTIME`.

`moved.py` carries a graph with the bytes it reads and no others; one file per runtime says what goes where.
"""
