import click


@click.command("planning")
def command() -> None:
    pass
