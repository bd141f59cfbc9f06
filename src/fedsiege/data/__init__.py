"""Data: where it comes from, how clients get it, and which examples an audit asks about."""
