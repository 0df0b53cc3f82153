"""What each part of an engine buys: the plan with named parts taken out, or put into a bare one, and measured."""
