"""report.html: what report.json says, on one page that opens from disk."""
