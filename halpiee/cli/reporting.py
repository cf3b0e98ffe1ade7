import click


@click.command("reporting")
def command() -> None:
    pass
