import gc
import re
import signal
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")

# Children inherit an ignored signal, and tests send them these.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup starts its command
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """forked(code, cwd, **environment): what `python -c code` would do, without its import of torch."""
    from support.forks import Forks

    forks = Forks(tmp_path_factory.mktemp("forked"))
    yield forks.run
    forks.close()


# `make check` runs what is not long: operators against the oracle, arguments, data, options, networks.
TESTS = Path(__file__).parent
QUICK = tuple(TESTS / folder for folder in ("kernels", "i2i/data", "i2i/networks", "i2i/cli"))
# that emulate a GPU, compile, trace, start processes or try at random
LONG_FILES = re.compile(
    "test_(backends|build|cuda.*|device.*|environment|export|fuzz|guard|memory|tracing|.*_offline).py"
)
LONG_NAMES = re.compile("compil|export|onnx|opcheck|terminal|interrupted")


def is_long(item):
    if not any(folder in item.path.parents for folder in QUICK) or LONG_FILES.fullmatch(item.path.name):
        return True
    return LONG_NAMES.search(item.name) is not None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if is_long(item):
            item.add_marker("long")


def pytest_collection_finish():
    """What was imported stays: a garbage collection that walks through torch takes a quarter of a second, each time."""
    gc.collect()
    gc.freeze()


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
        reporter.ensure_newline()
        reporter.write_line(f"{passed} tests passed, want at least {wanted}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
