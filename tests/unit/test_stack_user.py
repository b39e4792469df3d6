import os
import pwd
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.stack import user as module
from cli.stack.child import SystemUser
from cli.stack.user import make_reachable, make_readable, postgres_user
from evervec.errors import ConfigurationError

STRANGER = SystemUser("stranger", 54321, 54321)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_lets_a_stranger_pass_through_where_it_must_and_no_more(tmp_path: Path) -> None:
    closed, target = tmp_path / "closed", tmp_path / "closed" / "open" / "target"
    target.mkdir(parents=True)
    target.chmod(0o700)
    target.parent.chmod(0o755)
    closed.chmod(0o700)
    said: list[str] = []

    make_reachable(target, STRANGER, said.append)

    assert mode(closed) == 0o701
    assert mode(target.parent) == 0o755
    assert mode(target) == 0o700
    assert any(str(closed) in line and "stranger" in line for line in said)

    said.clear()
    make_reachable(target, STRANGER, said.append)
    assert said == []


def test_says_which_folder_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)

    def refuse(_path: Path, _mode: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(ConfigurationError, match=r"cannot be made searchable \(Permission denied\)"):
        make_reachable(tmp_path / "closed" / "target", STRANGER, lambda _line: None)


def test_an_installation_under_a_strict_umask_becomes_readable(tmp_path: Path) -> None:
    program, library = tmp_path / "install" / "bin" / "program", tmp_path / "install" / "library"
    program.parent.mkdir(parents=True)
    for path, strict in ((program, 0o700), (library, 0o600)):
        path.touch()
        path.chmod(strict)
    for folder in (program.parent, tmp_path / "install"):
        folder.chmod(0o700)

    make_readable(tmp_path / "install")

    assert (mode(program), mode(library), mode(program.parent), mode(tmp_path / "install")) == (
        0o705,
        0o604,
        0o705,
        0o705,
    )


def test_several_that_start_at_once_add_the_user_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a `useradd` that is slow, refuses to add a user twice, and knows a file of users of this test's own."""
    users, useradd = tmp_path / "passwd", tmp_path / "bin" / "useradd"
    users.touch()
    useradd.parent.mkdir()
    useradd.write_text(f"#!/bin/sh\nsleep 0.2\ntest -s {users} && exit 9\necho root > {users}\n")
    useradd.chmod(0o755)

    def getpwnam(_name: str) -> pwd.struct_passwd:
        if not users.read_text():
            raise KeyError
        return pwd.getpwuid(0)

    monkeypatch.setenv("PATH", str(useradd.parent), prepend=os.pathsep)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(module, "USERS", users)
    said: list[str] = []
    with ThreadPoolExecutor(4) as processes:
        found = set(processes.map(lambda _: postgres_user(tmp_path / "cluster", said.append), range(4)))

    assert found == {SystemUser("root", 0, 0)}
    assert len(said) == 1
