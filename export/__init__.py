"""A variant becomes something deployable: graphs, verification, manifest, card, command line."""
