"""How fast Moodbox is: against what people would write instead, and against the limit. `make bench` runs it."""
