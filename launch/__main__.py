"""The `headwater` command, for machines whose PATH does not have it: `python -m headwater.launch demo`."""

from headwater.launch.cli import main
from headwater.train.ending import FINISHED, note_ending, report_ending

if __name__ == "__main__":
    report_ending()
    try:
        main()
    except SystemExit as ended:
        if not ended.code:
            note_ending(FINISHED)
        raise
