"""Real servers for tests, proofs and benchmarks: each on a free loopback port, with a folder of its own.

A URL in the environment (`TIDINGS_TEST_POSTGRES` and the like) takes the place of a server that is started here.
"""
