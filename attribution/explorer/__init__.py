"""The browser explorer: what a run, an index or files of results hold, served on this machine or written as files.

Reading: holdings (what there is) > sets, facts, library (queries and results, probes, passages). Showing: pages, one
function a page, from parameters to what its template, its JSON and its CSV hold; server and export render them alike.
Asking: live (the model, the queue).
"""
