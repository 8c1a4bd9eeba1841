"""From the archive to the formats that others read."""
