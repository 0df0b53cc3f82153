"""Pictures by kind. Each knows its marks, none knows where its figures come from."""
