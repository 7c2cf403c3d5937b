"""For all tests: the options of the suite that ships with the package, and real databases."""

pytest_plugins = ["tidings.testing.conformance.plugin", "tests.servers"]
