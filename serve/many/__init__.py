"""Many students on one base, whose adapters are loaded and unloaded in one engine.

__main__  `make serve-many`, and its commands add, remove and list
app       each student's app under its name
students  models/students: what is served together
"""
