# Reads its disk for ever, whatever happens to the backend.

load
