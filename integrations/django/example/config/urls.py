"""The example's pages."""

from django.contrib import admin
from django.urls import path

from items import views

urlpatterns = [
    path("", views.index, name="index"),
    path("items/<int:pk>/", views.detail, name="item"),
    path("admin/", admin.site.urls),
]
