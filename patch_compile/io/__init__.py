"""Files: masks and models, read with suspicion and written whole or not at all."""
