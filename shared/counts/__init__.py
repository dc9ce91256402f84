"""The entropy model that counts: the entropy of the next byte after each context of a few bytes, found in a table."""
