"""Search: the items whose content is nearest to a text."""

from db.sources import Hit, Sources
from embedding.encoder import Encoder
from evervec.errors import BadItemError, ConfigurationError


async def search(sources: Sources, encoder: Encoder, source: str, text: str, limit: int) -> list[Hit]:
    """The eligible items nearest to the text, by cosine distance, among those embedded by the source's present model.

    The text is embedded as the items are: same model, same prompt.
    """
    if not text.strip():
        raise ConfigurationError("there is no text to search for")
    model = (await sources.get(source)).model
    try:
        [vector] = await encoder.embed(model, [text])
    except BadItemError as error:
        raise ConfigurationError(f"the text cannot be searched for: {error}") from None
    return await sources.search(source, vector, limit)
