# Reads whatever devices there are, for ever.

load
