import random

from stages.parts.run.key_places import FIRST_SIZE, KeyPlaces


def test_places_are_a_dicts_however_keys_collide():
    chance = random.Random(0)
    alike = [number * 2**40 for number in range(300)]  # all begin their search at slot 0
    keys = [0, 2**64 - 1, *alike, *(chance.getrandbits(64) for _ in range(4 * FIRST_SIZE))]
    index, wanted, marked = KeyPlaces(), {}, set()
    for _ in range(5 * len(keys)):
        key = chance.choice(keys)
        assert index.get(key) == wanted.get(key)
        if key in wanted and chance.random() < 0.5:
            assert index.mark(key) == (key not in marked)
            marked.add(key)
        else:
            wanted[key] = chance.randrange(2**62 - 1)
            index.put(key, wanted[key])
    assert index.places() == sorted(wanted.values()) and len(index.keys) < 4 * len(wanted)
