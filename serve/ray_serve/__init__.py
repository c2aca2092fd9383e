"""The service on Ray Serve: an LLM endpoint and the classifier, each scaled on its own."""
