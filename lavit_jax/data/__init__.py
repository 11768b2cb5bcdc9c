"""Host side data: sources, records, text, pack plan, rows and the feed (numpy only)."""
