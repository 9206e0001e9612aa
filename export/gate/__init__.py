"""The gate: a variant is proven equal to its source with the same knobs at run time, or it never appears."""
