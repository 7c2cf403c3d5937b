"""For all tests: the options of the suite that ships with the package, and real databases."""

import signal

from hypothesis import settings

pytest_plugins = ["tidings.testing.conformance.plugin", "tests.leftovers", "tests.servers", "tests.timeouts"]

# A shell starts what runs in its background deaf to Ctrl-C, and every process inherits that: tests that interrupt a
# command would wait for ever. With a handler here, the commands that are started hear it again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing of what is tested
settings.load_profile("any machine")
