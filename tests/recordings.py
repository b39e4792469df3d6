"""Pictures of commands for the README, from a real run: `make recordings` writes them into docs/images.

PostgreSQL, Temporal, a listener and a worker run; what is wrong in the pictures has been made wrong for them.
"""

import asyncio
import io
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from db.schema import apply_schema
from tests.integration.pipeline import Site, until
from tests.integration.terminal import COLUMNS, Terminal

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MODEL = "bundled:use-multilingual-v3"
WATCH = ("watch", "items", "--text", "name,description", "--required", "description", "--active", "active")
REDRAWN = "\x1b[2K"
"""Before each new picture a live one clears its lines."""
CURSOR = re.compile(r"\x1b\[\?25[hl]|\x1b\[\d*[ABK]|\r")
THEME = TerminalTheme(
    (22, 27, 34),
    (222, 226, 230),
    [(60, 66, 74), (255, 123, 114), (99, 201, 115), (227, 179, 65), (110, 168, 254), (201, 138, 246), (86, 211, 220),
     (222, 226, 230)],
    [(110, 118, 129), (255, 161, 152), (126, 231, 135), (242, 204, 96), (145, 190, 255), (218, 170, 255),
     (130, 230, 238), (255, 255, 255)],
)  # fmt: skip
PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{unique_id}">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Site]:
    """The demo's table, watched, on servers of its own."""
    postgres, temporal = PostgresServer(folder / "postgres"), TemporalServer(folder / "temporal" / "temporal.db")
    async with AsyncExitStack() as opened:
        for server in (postgres, temporal):
            await server.start()
            opened.push_async_callback(server.stop)
        await apply_schema(postgres.conninfo())
        site = await opened.enter_async_context(Site.open(postgres.conninfo(), temporal.address, task_queue="evervec"))
        await site.owner.execute(files("cli.demo").joinpath("items.sql").read_bytes())
        yield site


async def record(site: Site) -> None:
    """All pictures, one after the other."""
    variables = {
        "EVERVEC_DATABASE_URL": site.conninfo,
        "EVERVEC_TEMPORAL_ADDRESS": site.settings.temporal_address,
        "EVERVEC_MODEL": MODEL,
    }

    async def take(name: str, *command: str, live: str | None = None) -> None:
        terminal = Terminal(*command, variables=variables)
        if live:
            await asyncio.to_thread(terminal.shows, live)
            terminal.interrupt()
        shown = (await asyncio.to_thread(terminal.end)).shown
        draw(name, command, shown.rpartition(REDRAWN)[2] if live else shown)

    await take("dry-run", *WATCH, "--dry-run")
    await asyncio.to_thread(Terminal(*WATCH, variables=variables).end)
    async with site.running(max_attempts=1):
        await until(lambda: site.value("SELECT coverage = 1 AND pending = 0 FROM evervec.status"))
        await site.run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'lent things are not to be changed'; END $$; CREATE TRIGGER refuse BEFORE UPDATE ON items "
            "FOR EACH ROW WHEN (OLD.id IN (17, 117) AND NEW.embedded_at > OLD.embedded_at) EXECUTE FUNCTION refuse()"
        )
        await site.run("UPDATE items SET description = description || ' Please ask first.' WHERE id IN (17, 117)")
        await until(lambda: site.value("SELECT count(*) = 2 FROM evervec.failures"))
        await take("failures", "failures")
        await take("item", "item", "items", "117")
        await site.run("SELECT evervec.throttle('items', 8); SELECT evervec.refire('items', 'id < 117', force => true)")
        await site.run("SELECT evervec.throttle('items', 8)")
        await take("status", "status", "--watch", live="left")
        await site.run("SELECT evervec.throttle('items')")
        await until(lambda: site.value("SELECT pending = 0 FROM evervec.status"))
        await site.run("ALTER TABLE items DISABLE TRIGGER USER")
        await take("doctor", "doctor")


def draw(name: str, command: tuple[str, ...], shown: str) -> None:
    """Write a picture of a command and of what it has shown."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    words = " ".join(f"'{word}'" if " " in word else word for word in command)
    console.print(Text.assemble(("$ ", "bright_black"), (f"evervec {words}", "bold")))
    console.print(Text.from_ansi(CURSOR.sub("", shown).rstrip()))
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.svg"
    console.save_svg(str(path), theme=THEME, code_format=PICTURE, unique_id=f"evervec-{name}")
    sys.stdout.write(f"{path}\n")


async def main(folder: Path) -> None:
    """Record all, with the servers' data in a folder."""
    async with scene(folder) as site:
        await record(site)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="evervec-recordings-") as temporary:
        Path(temporary).chmod(0o711)  # PostgreSQL may have to run as another user
        asyncio.run(main(Path(temporary)))
