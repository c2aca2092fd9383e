"""The service: the served pair behind HTTP. Imports stages.parts, never the other way round."""
