"""Chance by a script, for demonstrations by hand."""

import random


class Scripted(random.Random):
    """Gives the listed numbers in order."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)
