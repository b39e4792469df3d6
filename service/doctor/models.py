"""The models of all sources: whether they can be loaded here, and fit."""

from collections.abc import AsyncIterator, Iterable

from db.diagnosis import SourceFacts
from embedding.encoder import Encoder
from evervec.errors import DimensionError, EvervecError
from evervec.settings import Settings
from service.doctor.check import Check, fault, fine


async def check_models(facts: Iterable[SourceFacts], settings: Settings) -> AsyncIterator[Check]:
    """Load each model and embed a word with it."""
    async with Encoder(settings) as encoder:
        for model in dict.fromkeys(found.spec for found in facts):
            try:
                await encoder.embed(model, ["evervec"], live=False)
            except DimensionError as error:
                yield fault("model", str(error), "call `evervec watch` again with the model's dimension")
            except EvervecError as error:
                yield fault("model", str(error), "where a worker runs on this machine, install or download it")
            else:
                yield fine("model", f"{model.name} can be loaded here: {model.dimension} dimensions")
