import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children inherit it, and tests interrupt them


def pytest_collection_modifyitems(items):
    """The interpreter's cases first: they keep one of two workers busy for minutes, while the other does the rest."""
    items.sort(key=lambda item: item.path.name != "test_triton_interpreter.py")
