"""The pages, a module each; `dashboard.app` lists them."""
