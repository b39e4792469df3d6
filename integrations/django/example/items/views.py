"""Two pages: all items with a search, and one item with those like it."""

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render

from django_evervec.errors import EmbedderUnavailableError
from django_evervec.search import find_similar_items
from items.models import Item

NUMBER = 10


def index(request: HttpRequest) -> HttpResponse:
    """The newest items, or those nearest to what is asked for."""
    query, error = request.GET.get("q", "").strip(), ""
    items: QuerySet[Item] = Item.objects.filter(active=True).order_by("-created_at", "-pk")
    if query:
        try:
            items = find_similar_items(query, NUMBER, model=Item)
        except EmbedderUnavailableError as unavailable:
            items, error = Item.objects.none(), str(unavailable)
    return render(request, "items/index.html", {"items": items[:NUMBER], "query": query, "error": error})


def detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One item, and the ten most like it."""
    item = get_object_or_404(Item, pk=pk)
    return render(request, "items/detail.html", {"item": item, "similar": Item.objects.similar_to(item, limit=NUMBER)})
