"""A campaign of kills and faults: what is done, how it is broken off, and how what comes of it is compared."""
