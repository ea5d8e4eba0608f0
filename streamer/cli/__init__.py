"""The command line."""


def start() -> int:
    """The `streamer` command, as `main.main`; an interrupt ends it quietly with 130 while it is being imported, too."""
    try:
        from streamer.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130
