"""What a teacher's labels will cost, and which prompt is worth its price. Nothing here changes a stage's result.

__main__.py    `make tune-teacher`: compare prompts on the gold rows, write the cheapest that none beats
plan.py        `make plan`: requests, tokens, dollars and time of labelling, from a sample of the rows
gpu_plan.py    the same for models on GPUs, from their configuration: download, layout, engine starts, hours, dollars
recipes.py     the prompts to compare, and how each is made from gold rows
optimisers.py  DSPy's GEPA and MIPROv2 as recipes
session.py     one teacher queried with many prompts, by us and by DSPy's optimisers: one store, one budget
comparison.py  scores by cross-fitting, McNemar's test, the choice
"""
