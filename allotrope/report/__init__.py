"""One page out of an engine's folder and its result files: it reads JSON, lays it out, and computes nothing."""
