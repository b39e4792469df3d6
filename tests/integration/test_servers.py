import psycopg
from temporalio.client import Client


async def test_postgres_has_pgvector(empty_database: str) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
        await connection.execute("CREATE EXTENSION vector")
        row = await (await connection.execute("SELECT '[3,4]'::vector <-> '[0,0]'::vector, lower('GRÖßE')")).fetchone()
    assert row == (5.0, "größe")


async def test_temporal_answers(temporal_address: str) -> None:
    client = await Client.connect(temporal_address)
    assert await client.service_client.check_health()
