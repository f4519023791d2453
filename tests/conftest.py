import signal

import pytest

pytest.register_assert_rewrite("support")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children inherit it, and tests interrupt them


def pytest_addoption(parser):
    parser.addoption("--at-least", type=int, default=0, metavar="N", help="fewer tests that pass are a failure")


def pytest_sessionfinish(session):
    """An empty or cut-off run is no pass."""
    config = session.config
    wanted, reporter = config.getoption("--at-least"), config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or not wanted:  # a worker's part is no whole
        return
    passed = len(reporter.stats.get("passed", ()))
    if passed < wanted:
        reporter.write_line(f"{passed} tests passed, want at least {wanted}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
