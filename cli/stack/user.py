"""PostgreSQL refuses to run as root: the user that it runs under then, and paths which that user can reach."""

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

from cli.stack.child import Say, SystemUser
from evervec.errors import ConfigurationError

USER_NAME = "evervec"
USERS = Path("/etc/passwd")


def postgres_user(cluster: Path, say: Say) -> SystemUser | None:
    """The user for a cluster: none for an ordinary user's, for root's its owner or the system user `evervec`."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return SystemUser(str(owner.st_uid), owner.st_uid, owner.st_gid)
    entry = _found_user() or _added_user(say)
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _found_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(USER_NAME)
    except KeyError:
        return None


def _added_user(say: Say) -> pwd.struct_passwd:
    # Several processes may find at once that there is no such user: one adds it, the others wait until it has.
    with USERS.open() as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        if not (entry := _found_user()):
            _add_user(say)
            entry = pwd.getpwnam(USER_NAME)
        return entry


def _add_user(say: Say) -> None:
    say(f"adding the system user {USER_NAME}, because PostgreSQL refuses to run as root")
    useradd = shutil.which("useradd") or "/usr/sbin/useradd"
    command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER_NAME]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - nothing of it is input
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise ConfigurationError(
            f"PostgreSQL refuses to run as root and the system user {USER_NAME} cannot be added ({reason}): "
            f"add it by hand, or run evervec as an ordinary user"
        ) from None


def make_reachable(path: Path, user: SystemUser, say: Say) -> None:
    """Let `user` search the folders that lead to `path`, where it cannot yet; a ConfigurationError where that fails."""
    opened = []
    for folder in reversed(path.resolve().parents):
        status = folder.stat()
        missing = _missing_search(status, user)
        if not missing:
            continue
        try:
            folder.chmod(stat.S_IMODE(status.st_mode) | missing)
        except OSError as error:
            raise ConfigurationError(
                f"PostgreSQL runs as the user {user.name}, who cannot reach {path}: {folder} cannot be made searchable "
                f"({error.strerror}). Put it elsewhere, or run evervec as an ordinary user"
            ) from None
        opened.append(str(folder))
    if opened:
        say(f"PostgreSQL runs as the user {user.name}: chmod +x {' '.join(opened)} lets it reach {path}")


def _missing_search(status: os.stat_result, user: SystemUser) -> int:
    if status.st_uid == user.uid:
        needed = stat.S_IXUSR
    elif status.st_gid == user.gid:
        needed = stat.S_IXGRP
    else:
        needed = stat.S_IXOTH
    return needed & ~status.st_mode


def make_readable(folder: Path) -> None:
    """Let everybody read the files of an installation, where a strict umask has kept them from it."""
    if folder.stat().st_mode & stat.S_IROTH:
        return
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> 6)
