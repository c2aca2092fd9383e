"""The student: its base, its weights, its prompt, and the pair that is served.

tiny.py           the embedded profile's student, a Llama built from nothing
chat_template.py  a hub student's chat template: no date, and the same tokens in training and serving
weights.py        weights loaded to be trained, kept, merged, exported
linear.py         the linear student, as arrays
footprint.py      files, memory and start of a student in the process
serving.py        which engine serves which student
scoring.py        a served student's answers to many rows
search.py         the search for demonstrations
prediction.py     a calibrated prediction, and what a service needs of a student
local.py          a student that runs in the process
promoted.py       which one is promoted
promotion.py      promote a student, or go back to the one before
pair.py           the chosen weights and program: loaded, checked, queried
"""
