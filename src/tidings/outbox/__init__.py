"""The outbox: events that were written in the transaction that caused them, and the relay that publishes them."""
