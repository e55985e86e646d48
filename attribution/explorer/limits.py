"""How much the explorer takes and shows. One page is never larger than these, whatever the data hold."""

PROMPT_CHARACTERS = 4_000
"""Of a question that is asked, at most."""
TARGET_CHARACTERS = 400
FILTER_CHARACTERS = 400
ADDRESS_CHARACTERS = 64_000
"""Of a request's query string."""
BODY_BYTES = 64_000
"""Of a posted form."""
WAITING = 8
"""Questions in the queue; a further one is refused."""
ANSWERS_KEPT = 64
"""Finished questions that can be looked at again without asking."""
PAGE_ROWS = 50
"""Queries on a page."""
SHOWN_PASSAGES = 20
EXCERPT = 700
"""Characters of a passage in a list."""
READ_CHARACTERS = 20_000
"""Of a passage on its own page; of tokens with heat as many."""
LABEL_CHARACTERS = 400
"""Of a prompt or target kept in memory, of an id shown."""
CONTINUED_TOKENS = 24
"""Tokens that the model goes on by."""
DOWNLOAD_ROWS = 100_000
"""Lines of a CSV or JSON download."""
