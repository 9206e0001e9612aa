"""From a grid of settings to the one that fits a device: measured together, kept in one table, chosen by rules."""
