"""One self-contained page about a sweep: figures, tables, and the pictures as the model sees them."""
