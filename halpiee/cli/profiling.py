import click


@click.command("profiling")
def command() -> None:
    pass
