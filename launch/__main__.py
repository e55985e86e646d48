"""The `headwater` command, for machines whose PATH does not have it: `python -m headwater.launch demo`."""

from headwater.launch.cli import main

if __name__ == "__main__":
    main()
