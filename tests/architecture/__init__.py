"""What the code may look like, held by tests."""
