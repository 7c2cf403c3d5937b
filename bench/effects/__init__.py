"""Effects applied once in PostgreSQL: how fast, beside the same by hand, fed from the same JetStream."""
