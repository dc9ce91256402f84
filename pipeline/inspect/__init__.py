"""What a dataset holds, found and shown: as text, and as a page for a browser."""
