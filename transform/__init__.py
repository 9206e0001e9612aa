"""A checkpoint becomes a smaller checkpoint, and what a static variant must equal at run time."""
