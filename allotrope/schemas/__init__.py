"""What each verb's `--json` holds, as JSON Schema: `VERB.json`; `kept.json` is what its kept file holds besides."""
