"""What all faults have in common."""

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

from tests.chaos.post import Post
from tests.chaos.site import Site


class Fault(ABC):
    """One fault at one place, to be made and to be undone once."""

    kind: ClassVar[str]
    length: ClassVar[str] = "down"
    """How long it lasts: see `plan.make_plan`."""
    stops_writers: ClassVar[bool] = False
    """Whether nobody can write while it lasts."""

    def __init__(self, site: Site, dice: float) -> None:
        self.site = site
        self.dice = dice

    @property
    def place(self) -> str:
        """Where it strikes."""
        return ""

    @property
    @abstractmethod
    def busy(self) -> asyncio.Lock:
        """Held while the fault lasts: one at a time at one place."""

    @abstractmethod
    async def inject(self) -> None:
        """Make it."""

    @abstractmethod
    async def heal(self) -> None:
        """Undo it."""

    def one_of(self, posts: list[Post]) -> Post:
        """One of the posts that are open."""
        opened = [post for post in posts if post.is_open] or posts[:1]
        return opened[int(self.dice * len(opened))]
