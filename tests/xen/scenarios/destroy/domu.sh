# Reads its disk until it is destroyed.

load
