import click


@click.command("inspection")
def command() -> None:
    pass
