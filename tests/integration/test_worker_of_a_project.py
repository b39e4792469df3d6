"""A Temporal worker that a project runs already also does evervec's work: one function each gives what to register."""

import uuid

from temporalio.worker import Worker

from activities import all_activities
from db.connection import open_pool
from db.items import Items
from embedding.encoder import Encoder
from evervec.temporal import connect, ensure_search_attributes
from service import EmbeddingService
from tests.integration.pipeline import Site, new_table, until
from tests.integration.project import Greeting, greet
from workflows import all_workflows


async def test_both_are_worked_on(database: str, temporal_address: str) -> None:
    async with Site.open(database, temporal_address) as site:
        table = await new_table(site, "column", name="items")
        await table.fill(3)
        client = await connect(site.settings)
        await ensure_search_attributes(client)
        async with (
            open_pool(site.settings.database_conninfo, size=2, application_name="project") as pool,
            Encoder(site.settings) as encoder,
            Worker(
                client,
                task_queue=site.settings.task_queue,
                workflows=[Greeting, *all_workflows()],
                activities=[greet, *all_activities(Items(pool), encoder, site.settings)],
            ),
            EmbeddingService(site.settings, source="items") as service,
        ):
            greeting = await client.execute_workflow(
                Greeting.run, "Ada", id=str(uuid.uuid4()), task_queue=site.settings.task_queue
            )
            assert greeting == "Hello, Ada"

            workflow_id = await service.start_item_embedding(1)

            async def fresh() -> bool:
                return (await service.get_embedding_status(workflow_id)).state == "fresh"

            await until(fresh)
            vectors = await table.vectors()
            assert [key for key, vector in vectors.items() if vector] == ["1"], vectors
