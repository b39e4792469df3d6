"""What happens to the network between a listener and PostgreSQL."""

from tests.chaos.faults.processes import AtListener
from tests.chaos.site import Site


class AtNetwork(AtListener):
    """A fault of the network between a listener and PostgreSQL."""

    length = "pause"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self.proxy = site.proxies[site.listeners.index(self.post)]


class HalfOpen(AtNetwork):
    """Both ends believe in connections on which nothing arrives any more, nor ever will; new ones can be made."""

    kind = "listener's connections half-open"

    async def inject(self) -> None:
        """Drop what is sent, either way."""
        self.proxy.strand()

    async def heal(self) -> None:
        """Both ends learn of it."""
        await self.proxy.cut_stranded()


class Frozen(AtNetwork):
    """Nothing gets through for a while, and then everything does."""

    kind = "listener's network frozen"

    async def inject(self) -> None:
        """Hold back what is sent."""
        self.proxy.freeze()

    async def heal(self) -> None:
        """Deliver it."""
        self.proxy.thaw()
