"""The tests: unit, conformance, integration, acceptance and architecture."""
