"""The cache of C++ builds: what serves, what is built anew, what is remembered, and what is said where neither can be.

A compiler that takes no time stands for the real one: it makes empty objects and "links" by copying the library that
this process has loaded.
"""

import errno
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kernels import _build, _cache, _native
from kernels._cache import LIBRARY, RECORD, BuildError

NINJA = _build._ninja()


def script(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


def compiler(path, *before, version="fake 1.0"):
    """A compiler at this path; `before`: lines of shell that it runs before it compiles."""
    return script(
        path,
        f'case " $* " in *" --version "*) echo "{version}"; exit 0;; esac',
        f"echo call >> {path}.calls",
        *before,
        "shared=; out=; while [ $# -gt 0 ]; do case $1 in -shared) shared=1;; -o) out=$2;; esac; shift; done",
        f'if [ "$shared" ]; then cp {_native.load().__file__} "$out"; else : > "$out"; fi',
    )


def calls(path):
    log = Path(f"{path}.calls")
    return log.read_text().count("call") if log.exists() else 0


ONCE = 1 + len(_build.ROOMS) * (1 + len(_build.LEVELS)) + len(_build.NCE_LEVELS) + 1  # calls of a whole build


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache, and a PATH on which c++ is the fake one."""
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    compiler(tmp_path / "bin" / "c++")
    (tmp_path / "bin" / "ninja").symlink_to(NINJA)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # ninja lies beside the real one
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def no_compiler(place, monkeypatch):
    def take_away():
        monkeypatch.setenv("PATH", str(place / "nothing"))

    return take_away


def tree(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*"))


def reason():
    with pytest.raises(BuildError) as caught:
        _build.find_or_build()
    return str(caught.value)


# ---- what serves -----------------------------------------------------------------------------------------------------


def test_a_build_serves_without_compiler_and_ninja_and_is_not_written_to(place, no_compiler):
    made = _build.find_or_build()
    assert calls(place / "bin" / "c++") == ONCE
    before = tree(place / "cache")
    assert {p.name for p in before} == {made.library.parent.name, LIBRARY, RECORD, "lock"}
    folder = made.library.parent
    folder.chmod(0o555)  # as in an image or a shared folder
    stamp = os.stat(folder).st_mtime_ns
    no_compiler()
    assert _build.find_or_build() == made and made.compiler == "fake 1.0"
    assert tree(place / "cache") == before and os.stat(folder).st_mtime_ns == stamp
    folder.chmod(0o755)


def test_two_checkouts_share_a_build_and_other_sources_do_not(place, monkeypatch):
    key = _build._key()
    copy = place / "another checkout" / "cpu"
    shutil.copytree(_build.SOURCES, copy)
    monkeypatch.setattr(_build, "SOURCES", copy)
    (copy / ".norm.cpp.swp").write_text("an editor's")
    assert _build._key() == key
    (copy / "norm" / "norm.h").write_text((copy / "norm" / "norm.h").read_text() + "\n")
    assert _build._key() != key
    (copy / "norm" / "norm.cpp").unlink()
    with pytest.raises(BuildError, match="the C\\+\\+ sources are not at .*another checkout"):
        _build.find_or_build()


def test_sources_below_a_path_with_spaces_are_found_by_ninja(place, monkeypatch):
    copy = place / "a $ b:c" / "cpu"
    shutil.copytree(_build.SOURCES, copy)
    monkeypatch.setattr(_build, "SOURCES", copy)
    monkeypatch.setenv("KERNELS_CACHE", str(place / "ca che $HOME"))
    compiler(place / "bin" / "c++", 'for word; do case $word in *.cpp) [ -e "$word" ] || exit 9;; esac; done')
    assert _build.find_or_build().library.exists()


def test_another_compiler_gets_a_build_of_its_own_and_its_build_serves_who_has_none(place, monkeypatch, no_compiler):
    other = compiler(place / "clang++", version="other 2.0")
    monkeypatch.setenv("CXX", f"{other} -march=native")
    flagged = _build.find_or_build()
    monkeypatch.setenv("CXX", str(other))
    plain = _build.find_or_build()
    assert calls(other) == 2 * ONCE and plain.library != flagged.library
    monkeypatch.delenv("CXX")
    no_compiler()
    assert _build.find_or_build() == plain
    shutil.rmtree(plain.library.parent)
    # instructions of the machine that built it are not for everybody
    assert "no C++ compiler on the PATH" in reason()
    monkeypatch.setenv("CXX", f"{other} -march=native")
    assert _build.find_or_build() == flagged


def test_a_build_for_a_newer_c_library_is_made_anew(place, monkeypatch):
    if not _cache.glibc():
        pytest.skip("another C library than glibc")
    made = _build.find_or_build()
    monkeypatch.setattr(_cache, "glibc", lambda: [2, 17])
    assert _cache.whole_build(made.library.parent) is None
    assert _build.find_or_build() == made and calls(place / "bin" / "c++") == 2 * ONCE
    monkeypatch.undo()
    assert _cache.whole_build(made.library.parent) == made  # the older one serves both


# ---- damaged builds --------------------------------------------------------------------------------------------------


def _patch(path, at, value):
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 1 if value is None else value
    path.unlink()  # never in place: this process may have it mapped
    path.write_bytes(data)


def _rewrite(path, data):
    path.unlink()
    path.write_bytes(data)


DAMAGES = {
    "cut short": lambda library, record: os.truncate(library, 20000),
    "cut by a byte": lambda library, record: os.truncate(library, library.stat().st_size - 1),
    "empty": lambda library, record: os.truncate(library, 0),
    "one bit": lambda library, record: _patch(library, library.stat().st_size // 2, None),
    "another machine": lambda library, record: _patch(library, 18, 0xF3),
    "text": lambda library, record: _rewrite(library, b"version https://git-lfs.github.com/spec/v1\n"),
    "no library": lambda library, record: library.unlink(),
    "no record": lambda library, record: record.unlink(),
    "record cut short": lambda library, record: os.truncate(record, 30),
    "record empty": lambda library, record: os.truncate(record, 0),
    "record of zeros": lambda library, record: _rewrite(record, bytes(100)),
    "record not an object": lambda library, record: _rewrite(record, b"[1, 2]"),
    "record without digest": lambda library, record: _rewrite(record, b"{}"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_build_is_made_anew_or_named(place, no_compiler, kind):
    made = _build.find_or_build()
    good = made.library.read_bytes()
    for compiles in (True, False):
        DAMAGES[kind](made.library, made.library.with_name(RECORD))
        if not compiles:
            no_compiler()
            why = reason()
            assert "no C++ compiler on the PATH" in why
            assert ("is damaged" in why) == (kind != "no library"), why
        else:
            assert _build.find_or_build() == made
            assert made.library.read_bytes() == good
            assert calls(place / "bin" / "c++") == 2 * ONCE


# ---- where the cache lies --------------------------------------------------------------------------------------------


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/the/home")
    for own, xdg, want in (
        (None, None, "/the/home/.cache/fused-i2i-kernels"),
        ("", "", "/the/home/.cache/fused-i2i-kernels"),
        (" ", None, "/the/home/.cache/fused-i2i-kernels"),
        (None, "/xdg", "/xdg/fused-i2i-kernels"),
        ("", "/xdg", "/xdg/fused-i2i-kernels"),
        (None, "relative", "/the/home/.cache/fused-i2i-kernels"),  # as the specification of XDG_CACHE_HOME wants
        ("/own", "/xdg", "/own"),
        ("~/own", None, "/the/home/own"),
        ("own", None, f"{tmp_path}/own"),
    ):
        for name, value in (("KERNELS_CACHE", own), ("XDG_CACHE_HOME", xdg)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        assert str(_cache.cache_root()) == want, (own, xdg)


def test_no_home_directory_is_a_reason(monkeypatch):
    import pwd

    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "KERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "no home directory to keep the build in (KERNELS_CACHE" in reason()
    monkeypatch.setenv("KERNELS_CACHE", "~nosuchuser/x")
    assert "KERNELS_CACHE='~nosuchuser/x'" in reason()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_is_a_reason(place, monkeypatch, number):
    def refuses(*args, **options):
        raise OSError(number, os.strerror(number), str(place / "cache"))

    for where, name in ((Path, "mkdir"), (tempfile, "mkdtemp"), (Path, "write_bytes"), (os, "fsync")):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, refuses)
            why = reason()
        assert f"the cache folder {place / 'cache'}" in why and os.strerror(number) in why and "KERNELS_CACHE" in why
        assert not {p.name for p in tree(place)} & {LIBRARY, RECORD, "failed.log"}
        assert not list(place.rglob("work-*"))
    assert _build.find_or_build().library.exists()


def test_a_file_in_the_place_of_the_cache_or_of_the_library(place, monkeypatch):
    made = _build.find_or_build()
    made.library.unlink()
    made.library.mkdir()
    assert "is damaged or not for this system, and the cache folder" in reason()
    (place / "file").write_text("")
    monkeypatch.setenv("KERNELS_CACHE", str(place / "file"))
    assert "Not a directory" in reason()


def test_everyone_may_read_a_build_that_the_umask_allows(place):
    before = os.umask(0o022)
    try:
        made = _build.find_or_build()
    finally:
        os.umask(before)
    for path in (made.library, made.library.with_name(RECORD)):
        assert path.stat().st_mode & stat.S_IROTH


# ---- compilers -------------------------------------------------------------------------------------------------------


def test_what_is_no_compiler_is_said(place, monkeypatch):
    binary = place / "binary"
    binary.write_bytes(bytes(200))
    binary.chmod(0o755)
    for named, want in (
        ('g++ "', "is not a command: No closing quotation"),
        ("no-such-compiler", "CXX='no-such-compiler' names no program on the PATH"),
        ("''", "names no program on the PATH"),
        (str(place), f"CXX='{place}' names no program on the PATH"),
        (str(binary), f"{binary} does not run: "),
        (str(script(place / "fails", "exit 3")), "fails --version ends with status 3"),
        (str(script(place / "dies", "kill -9 $$")), "dies --version ends with status -9"),
    ):
        monkeypatch.setenv("CXX", named)
        assert want in reason()
        assert not (place / "cache").exists()
    monkeypatch.setenv("CXX", " ")  # as unset
    assert _build.find_or_build().compiler == "fake 1.0"


def test_a_compiler_named_by_a_relative_path_is_found_from_ninjas_folder(place, monkeypatch):
    monkeypatch.chdir(place)
    compiler(place / "tools" / "cc plus")
    monkeypatch.setenv("CXX", "'tools/cc plus'")
    assert _build.find_or_build().library.exists()


def test_a_missing_or_broken_ninja_is_a_reason(place, monkeypatch):
    ninja = place / "bin" / "ninja"
    ninja.unlink()
    monkeypatch.setenv("PATH", str(place / "bin"))
    assert "ninja is not installed" in reason()
    script(ninja).write_text("#!/no/such/interpreter\n")
    assert f"{ninja} does not run: " in reason()
    script(ninja, "exit 1")
    assert "the C++ build failed: the compiler gave no message (ninja ended with status 1" in reason()
    script(ninja, "exit 0")
    assert "the C++ build failed" in reason()
    assert not list(place.rglob("failed.log"))


def test_missing_headers_of_python_are_named_and_not_remembered(place, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(_build.sysconfig, "get_paths", lambda: {"include": str(place / "include")})
        assert f"Python's headers are not at {place / 'include'}" in reason()
    assert _build.find_or_build().library.exists()


@pytest.mark.parametrize(
    "said",
    [
        "/tmp/cc.s: fatal error: error writing to /tmp/cc.s: No space left on device",
        "c++: fatal error: Killed signal terminated program cc1plus",
        "cc1plus: out of memory allocating 65536 bytes",
        "virtual memory exhausted: Cannot allocate memory",
        "collect2: fatal error: ld terminated with signal 9 [Killed]",
        "norm.cpp:1:10: fatal error: cstdint: No such file or directory",
        "fatal error: 'cstdint' file not found",
        "",  # died without a word
    ],
)
def test_a_failure_that_may_pass_is_not_remembered(place, said):
    compiler(place / "bin" / "c++", f'echo "{said}" >&2; exit 1')
    why = reason()
    assert (said or "the C++ build failed") in why and "the next process tries again" in why
    assert not {p.name for p in tree(place / "cache")} & {LIBRARY, RECORD, "failed.log"}
    compiler(place / "bin" / "c++")
    assert _build.find_or_build().library.exists()


def test_a_compiler_that_is_killed_is_not_remembered(place):
    compiler(place / "bin" / "c++", "kill -9 $$")
    assert "the next process tries again" in reason()
    assert not list(place.rglob("failed.log"))


def test_a_failure_of_the_sources_is_remembered_until_the_compiler_changes(place):
    fake = compiler(place / "bin" / "c++", r'printf "norm.cpp:1:2: error: \351t\351 \377\n" >&2; exit 1')  # not UTF-8
    why = reason()
    assert "the C++ build failed: norm.cpp:1:2: error: \ufffdt\ufffd \ufffd (whole log: " in why
    count = calls(fake)
    assert reason() == why and calls(fake) == count
    compiler(fake, version="fake 1.1")
    assert _build.find_or_build().compiler == "fake 1.1"
    assert not list(place.rglob("failed.log"))


def test_a_compilers_temporary_files_lie_in_the_cache(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    compiler(place / "bin" / "c++", f'case $TMPDIR in {place}/cache/*) [ -d "$TMPDIR" ];; *) false;; esac || exit 1')
    assert _build.find_or_build().library.exists()
    assert not list(place.rglob("work-*"))


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_builds_without(place, monkeypatch, number):
    def none(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    made = _build.find_or_build()
    in_progress = made.library.parent / "work-of-another"
    in_progress.mkdir()
    made.library.unlink()
    assert _build.find_or_build() == made
    assert in_progress.exists()  # its builder may be alive


def test_what_a_killed_builder_left_is_cleared_away(place):
    made = _build.find_or_build()
    left = made.library.parent / "work-dead"
    left.mkdir()
    (left / "norm_avx2.o").write_bytes(bytes(1000))
    made.library.unlink()
    assert _build.find_or_build() == made
    assert not left.exists()


def test_waiting_for_another_builder_is_said_and_its_build_is_taken(place, monkeypatch, capsys):
    made = _build.find_or_build()
    aside = made.library.with_name("aside")
    made.library.rename(aside)
    monkeypatch.setattr(_cache, "PATIENCE", 0.1)
    with open(made.library.with_name("lock")) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        found = []
        waiting = threading.Thread(target=lambda: found.append(_build.find_or_build()))
        waiting.start()
        time.sleep(0.5)
        assert not found
        aside.rename(made.library)
    waiting.join(10)
    assert found == [made] and calls(place / "bin" / "c++") == ONCE
    said = capsys.readouterr().err
    assert said.count("waiting for another process that compiles") == 1 and str(made.library.parent) in said


def test_processes_that_start_at_once_build_once(place):
    compiler(place / "bin" / "c++", "sleep 0.02")
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = 0 if _build.find_or_build().library.exists() else 2
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert calls(place / "bin" / "c++") == ONCE
