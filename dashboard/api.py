"""Search and embed for programs: JSON in, JSON out. No text is logged or kept."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, StringConstraints

from dashboard.errors import RequestError
from dashboard.web import Dash, program_of
from dashboard.words import without_halves
from evervec.errors import BadItemError
from service.search import search as search_items

MAX_TEXTS = 256
MAX_CHARACTERS = 100_000
MAX_HITS = 1000

router = APIRouter(prefix="/api", dependencies=[Depends(program_of)], tags=["programs"])

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
SourceName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class SearchRequest(BaseModel):
    """What to search for."""

    source: SourceName
    query: Text
    limit: int = Field(10, ge=1, le=MAX_HITS)


class SearchHit(BaseModel):
    """An item that was found."""

    key: str
    distance: float = Field(description="cosine distance, 0 to 2")
    content: str


class SearchAnswer(BaseModel):
    """The nearest items, the nearest first."""

    source: str
    query: str
    results: list[SearchHit]


class EmbedRequest(BaseModel):
    """What to embed."""

    source: SourceName = Field(description="the source whose model and prompt are used")
    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)


class EmbedAnswer(BaseModel):
    """A vector for each text, in their order, each of length 1."""

    model: str = Field(description="what write-back puts beside the vectors of the source's items")
    dimension: int
    embeddings: list[list[float]]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "the request cannot be answered as it is",
        401: "no token, or a wrong one",
        404: "no such source",
        413: "too large",
        415: "no JSON",
        429: "too many requests compute already: try again in a moment",
        503: "PostgreSQL does not answer, or the model cannot be loaded",
    }.items()
}


@router.post("/search", responses=PROBLEMS)
async def search(request: SearchRequest, dash: Dash) -> SearchAnswer:
    """The eligible items nearest to a text."""
    async with dash.turn_to_compute():
        hits = await search_items(dash.sources, dash.encoder, _checked(request.source), request.query, request.limit)
    results = [
        SearchHit(key=without_halves(hit.key), distance=hit.distance, content=without_halves(hit.content))
        for hit in hits
    ]
    return SearchAnswer(source=request.source, query=request.query, results=results)


@router.post("/embed", responses=PROBLEMS)
async def embed(request: EmbedRequest, dash: Dash) -> EmbedAnswer:
    """Vectors of texts, made as those of the source's items are."""
    model = (await dash.sources.get(_checked(request.source))).model
    [details] = await dash.pages.details(request.source)
    if blank := [str(n) for n, text in enumerate(request.texts) if not text.strip()]:
        raise RequestError(f"there is nothing to embed in the texts {', '.join(blank)} (counted from 0)")
    async with dash.turn_to_compute():
        answers = await dash.encoder.embed_each(model, request.texts)
    for n, answer in enumerate(answers):
        if isinstance(answer, BadItemError):
            raise RequestError(f"text {n} (counted from 0) cannot be embedded: {answer}")
    embeddings = [answer.tolist() for answer in answers if not isinstance(answer, BadItemError)]
    return EmbedAnswer(model=details.model_label, dimension=model.dimension, embeddings=embeddings)


def _checked(source: str) -> str:
    if "\0" in source:
        raise RequestError("a source's name holds no NUL")
    return source
