"""The report's sections, in the order of the page: each reads one result and says what it holds."""
