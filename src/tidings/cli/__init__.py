"""The command line: parse, call, print. What it does can be done from Python as well."""
