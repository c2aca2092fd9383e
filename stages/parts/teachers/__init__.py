"""Where labels come from.

teacher.py       the profile's teacher, ready for requests
hosted.py        a hosted model's address, key and price
self_trained.py  the embedded teacher: linear models over TF-IDF, self-trained from gold rows and label names
linear_client.py the embedded teacher as a client that speaks OpenAI's protocol
inputs.py        the rows to label, chosen if not all are to be paid for, and the program that labels them
prompt_file.py   a tuned prompt: data/prompts/PROFILE.json
labelling.py     label many rows: votes, retries, and the errors that end a run
repeats.py       some pool rows answered a second time: what nobody can learn
causes.py        why requests fail: the first distinct causes, and a run in which nothing succeeds
confusions.py    which labels the teacher systematically confuses
"""
