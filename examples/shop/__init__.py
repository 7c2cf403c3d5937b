"""A shop of three services that talk through events: orders, stock and payments. `make demo` runs it on a bad day."""
