"""The service: the chosen pair behind HTTP (http/) and over files (batch/). Imports stages.parts, never the other way
round.
"""
