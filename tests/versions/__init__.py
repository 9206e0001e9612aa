"""What is admitted is run: the oldest and the newest of every dependency (`make test-versions`, docs/versions.md)."""
