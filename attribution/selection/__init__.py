"""Data selection: the passages, or the documents, of a corpus that serve a task best."""
