"""What a setting takes, by arithmetic from config and headers, and about how long that is on a named device."""
