"""The `headwater` command. Its commands are imported when it is called, and what they need when they run."""


def main() -> None:
    """Entry point of the `headwater` command."""
    from headwater.launch.cli.commands import app

    app()
