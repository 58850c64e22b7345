"""What a machine is: target records, their families, detection of this machine, and tool chains."""
