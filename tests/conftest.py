"""For all tests: the options of the suite that ships with the package."""

pytest_plugins = ["tidings.testing.conformance.plugin"]
