"""The service over HTTP: routes, keys, limits, the page."""
