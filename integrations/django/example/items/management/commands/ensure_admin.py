"""`manage.py ensure_admin`: a user for the admin, on a machine of one's own."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Makes the user `admin` with the password `admin`, unless there is one."""

    help = "Make the user admin, for the example on this machine alone."

    def handle(self, *_: Any, **__: Any) -> None:
        """Make the user."""
        users = get_user_model()._default_manager
        if not users.filter(username="admin").exists():
            users.create_superuser("admin", password="admin")  # noqa: S106 - as run.py tells
