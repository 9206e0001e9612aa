"""Selection strategies, one per file: from scores to the blocks that stay."""
