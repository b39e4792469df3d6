"""The example's settings, with tables of other shapes, and a second database for what migrations do."""

from config.settings import *  # noqa: F403
from config.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.things"]
DATABASES = {**DATABASES, "scratch": {**DATABASES["default"], "NAME": "scratch"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
