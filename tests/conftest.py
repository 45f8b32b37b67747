"""Fixtures every test may use; they live in ``tests/support``."""

import signal

pytest_plugins = ["support.world"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As a shell starts what it runs in the background. The processes that tests interrupt would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
