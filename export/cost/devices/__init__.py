"""Published numbers of devices, one TOML file each, the source of each number inside."""
