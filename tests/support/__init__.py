"""What several test modules need: checkpoints, variants, sessions, pictures, the command line; a file for each."""
