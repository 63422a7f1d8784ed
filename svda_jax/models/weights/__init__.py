"""Parameters in and out of other people's files."""
