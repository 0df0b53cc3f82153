"""Where a run's time goes, op by op and gap by gap, beside the least that it could take; and what a change would do."""
