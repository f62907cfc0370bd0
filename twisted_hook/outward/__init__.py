"""What hookdeploy asks of a forge: one file for each forge's API, and one for each thing that is asked of it."""
