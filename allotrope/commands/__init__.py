"""The verbs of the command line, a module each: HELP, add_arguments, run. They compose; nothing imports them."""
