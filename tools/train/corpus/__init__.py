"""The training data: fetch pinned projects, filter, deduplicate, split by project, write the work folder."""
