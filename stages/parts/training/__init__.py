"""SFT with TRL, exact and shared over a batch's common prompt.

rows.py           chats as token ids, and what each epoch draws anew
shared_prefix.py  a batch computes its common prompt once
meanings.py       texts' vectors as a second lesson, for base weights
trainer.py        TRL's trainer for base weights, adapters and whole models
watch.py          progress, losses that go wrong, checkpoints and log
launch.py         one training over many devices
"""
