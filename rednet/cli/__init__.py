"""What the commands in tools/ share: arguments, configs and their checks, models, processes."""
